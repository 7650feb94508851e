// One question or answer on the page, and the account under an answer.

import { render } from "./markdown.js";
import { colourOf, layersText, rangeOf, shortName } from "./map.js";
import { download } from "./stream.js";
import { number, t, translated } from "./words.js";

const COPIED_MS = 1500;
const opened = new WeakSet(); // accounts that the reader has open: they stay open when the list is drawn again

function make(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

export function iconButton(icon, label, onClick) {
  const button = make("button", "icon small");
  button.type = "button";
  button.title = label;
  button.setAttribute("aria-label", label);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${icon}`);
  svg.append(use);
  button.append(svg);
  if (onClick) button.addEventListener("click", onClick);
  return button;
}

/** Say what is wrong; what would be refused again needs another question. */
function problemOf({ problem, refused }) {
  if (!refused) return translated(problem);
  const text = translated(problem).replace("TemplateError: ", "").replace(/[.\s]*$/, ".");
  return `${text[0].toUpperCase()}${text.slice(1)} ${t("Edit the question, or begin a new conversation.")}`;
}

function textButton(label, onClick) {
  const button = make("button", "link", label);
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

/** Show a turn; returns what lets its text and account change. */
export function showTurn(turn, { onAgain, onEdit, onNew, onResults, onMark }) {
  const item = make("li", `turn ${turn.role}`);
  const body = make("div", "said");
  item.append(make("span", "unseen", t(turn.role === "user" ? "You asked:" : "The answer:")), body);
  const foot = make("div", "foot");
  if (turn.role === "assistant") item.append(foot);
  const view = {
    item,
    busy(is) {
      item.classList.toggle("busy", is);
      item.setAttribute("aria-busy", String(is));
    },
    update() {
      if (turn.role === "user") body.replaceChildren(...(turn.files ?? []).map(fileOf), turn.text);
      else body.replaceChildren(...thoughts(turn), ...render(turn.text), ...(turn.calls ?? []).map(callOf));
      if (turn.problem) body.append(make("p", "problem", problemOf(turn)));
    },
    live(text, share) {
      const shown = [make("span", "live", text)];
      if (share !== undefined) {
        const bar = make("progress", "");
        Object.assign(bar, { max: 1, value: share, ariaLabel: text });
        shown.unshift(bar);
      }
      foot.replaceChildren(...shown);
    },
    done(isLast) {
      foot.replaceChildren();
      if (turn.account) foot.append(account(turn.account, turn.cut));
      else if (turn.stopped) foot.append(make("span", "live", t("stopped")));
      if (isLast && turn.calls && !turn.problem) foot.before(resultsOf(turn, onResults));
      const tools = make("span", "tools");
      const copy = iconButton("copy", t("Copy"), async () => {
        await navigator.clipboard.writeText(turn.text);
        copy.querySelector("use").setAttribute("href", "#i-check");
        setTimeout(() => copy.querySelector("use").setAttribute("href", "#i-copy"), COPIED_MS);
      });
      if (turn.text) tools.append(copy);
      if (turn.text && onMark && !turn.calls && !turn.problem) tools.append(...marksOf(turn, foot, onMark));
      if (isLast && turn.refused) tools.append(textButton(t("Edit the question"), onEdit), textButton(t("New conversation"), onNew));
      else if (isLast) tools.append(iconButton("again", t("Answer again"), onAgain));
      foot.append(tools);
    },
  };
  view.update();
  return view;
}

/** Offer to keep an answer to learn from, as it is or as it should have been. */
function marksOf(turn, foot, onMark) {
  const good = iconButton("good", t("Good answer: keep it to learn from"), () => keep(turn.text));
  const mend = iconButton("mend", t("Mend the answer"), () => {
    if (foot.parentNode.querySelector(".mending")) return;
    const field = make("textarea", "");
    Object.assign(field, { rows: 4, required: true, value: turn.text });
    const form = make("form", "results mending", make("label", "", t("What the answer should have been"), field));
    form.append(make("button", "strong", t("Keep it to learn from")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      keep(field.value).then(() => form.remove());
    });
    foot.before(form);
    field.focus();
  });
  async function keep(text) {
    try {
      await onMark(turn, text);
      good.querySelector("use").setAttribute("href", "#i-check");
    } catch (error) {
      foot.append(make("p", "problem", translated(error.message)));
    }
  }
  return [good, mend];
}

/** Fold a file that went along with a question. */
function fileOf({ name, text }) {
  const details = make("details", "file");
  details.append(make("summary", "", name), make("pre", "", text));
  return details;
}

/** Show a tool that the model calls, and what came back. */
function callOf({ name, arguments: text, result }) {
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    // still on its way, or no JSON at all
  }
  const block = make("figure", "code call", make("figcaption", "", t("calls {0}", name)), make("pre", "", shown));
  if (result !== undefined) block.append(make("figcaption", "", t("result")), make("pre", "", result));
  return block;
}

/** Ask for what the tools would return: this page runs none. */
function resultsOf(turn, onResults) {
  const form = make("form", "results");
  for (const call of turn.calls) {
    const field = make("textarea", "");
    Object.assign(field, { rows: 2, required: true, name: call.id, value: call.result ?? "" });
    form.append(make("label", "", t("What {0} returns", call.name), field));
  }
  form.append(make("button", "strong", t("Send results")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    for (const call of turn.calls) call.result = form.elements[call.id].value;
    onResults();
  });
  return form;
}

/** Fold what the model thought before it answered. */
function thoughts(turn) {
  if (!turn.thoughts) return [];
  const details = make("details", "account");
  details.open = opened.has(turn);
  details.addEventListener("toggle", () => (details.open ? opened.add(turn) : opened.delete(turn)));
  details.append(make("summary", "", t(turn.text ? "What it thought" : "It is thinking …")), ...render(turn.thoughts));
  return [details];
}

function summaryOf(found, cut) {
  const peers = new Set(found.route.map((hop) => hop.peer)).size;
  const words = [t(peers === 1 ? "{0} peer" : "{0} peers", peers), t("{0} tokens", found.tokens)];
  if (found.tokens > 1) words.push(t("{0} tokens/s", number(found.tokens_per_second, 1)));
  if (cut) words.push(t("cut at the limit"));
  return words.join(" · ");
}

/** Say who made an answer, how fast, and what stands for it. */
function account(found, cut) {
  const details = make("details", "account");
  details.open = opened.has(found);
  details.addEventListener("toggle", () => (details.open ? opened.add(found) : opened.delete(found)));
  const mark = make("span", "trust-mark");
  mark.dataset.trust = found.trust ? (found.trust.held ? "held" : "broken") : "none";
  const word = found.trust ? [" · ", make("span", "trust-word", trustWord(found.trust))] : [];
  details.append(
    make("summary", "", mark, summaryOf(found, cut), ...word),
    stages(found),
    ...path(found.path ?? []),
    ...evidence(found.trust),
    make("p", "", timing(found)),
  );
  if (found.receipt) details.append(certificate(found.receipt));
  return details;
}

function trustWord({ held, audits }) {
  if (!held) return t("not trusted");
  const proved = audits.filter((each) => each.verdict === "proved").length;
  const seen = audits.filter((each) => each.verdict !== "not replayed").length - proved;
  const words = [t("checked"), seen && t("{0} re-run", seen), proved && t("{0} proved", proved)];
  return words.filter(Boolean).join(", ");
}

/** List the stages in the order of the layers, each with what its audit found. */
function stages({ route, trust }) {
  const list = make("ol", "route");
  const audits = [...(trust?.audits ?? [])];
  for (const hop of route) {
    const dot = make("i", "dot");
    dot.dataset.colour = colourOf(hop.peer);
    const item = make("li", "", dot, make("code", "", shortName(hop.peer)));
    item.append(make("span", "", layersText(...rangeOf(hop))));
    const at = audits.findIndex((each) => each.peer === hop.peer && each.layers === hop.layers);
    if (at >= 0) item.append(verdict(audits.splice(at, 1)[0]));
    else if (trust) item.append(make("span", "verdict", t("signed")));
    const other = trust?.unproved?.find((each) => each.peer === hop.peer && each.layers === hop.layers);
    if (other) item.append(make("span", "verdict", t("not proved: {0}", other.why)));
    item.title = hop.peer;
    list.append(item);
  }
  for (const each of audits) {
    const layers = layersText(...rangeOf(each));
    list.append(make("li", "", make("code", "", shortName(each.peer)), make("span", "", layers), verdict(each)));
  }
  return list;
}

/** Say which relays an answer went through, and who saw what. */
function path(relays) {
  if (!relays.length) return [];
  const last = shortName(relays.at(-1));
  const said = [
    t("through {0}", relays.map(shortName).join(" → ")),
    t("the stages saw the address of {0} and an id drawn for this conversation, not yours", last),
  ];
  if (relays.length === 1) {
    said.push(t("the relay saw your address and which peers you asked, and could read nothing"));
  } else {
    said.push(t("the first relay saw your address, and of the others only {0}", last));
    said.push(t("{0} saw the first relay and the peers you asked, not your address", last));
  }
  said.push(t("who watches your line and a stage's, or runs both, can still tell by timing"));
  return [make("p", "path", said.join("; "))];
}

function verdict({ verdict: found, by, position, blamed, text }) {
  const names = by.map((each) => translated(shortName(each))).join(t(" and "));
  if (found === "proved") {
    const said = make("span", "verdict", t("{0} proved, by {1}", translated(text), names));
    said.dataset.verdict = found;
    return said;
  }
  const who = by.length ? t(", run again by {0}", names) : "";
  const where = position == null ? "" : t(" from position {0} on", position);
  const whose = blamed ? t(", blaming {0}", shortName(blamed)) : "";
  const made = make("span", "verdict", `${t(found)}${where}${who}${whose}`);
  made.dataset.verdict = found;
  return made;
}

/** Say what was checked, no more and no less. */
function evidence(trust) {
  if (!trust) return [make("p", "", t("Nothing of this answer was checked: it is taken on trust."))];
  if (!trust.held) return [make("p", "problem", `${translated(trust.line)}.`)];
  // What audits found stands beside each stage above.
  return [trust.details[0], trust.details.at(-1)].map((text) => make("p", "", translated(text)));
}

function timing(found) {
  const words = [t("The first token came after {0} ms", number(found.time_to_first_token_ms))];
  if (found.reused_tokens) words.push(t("the stages still held {0} tokens of the conversation", found.reused_tokens));
  const drafted = found.drafts_kept + found.drafts_dropped;
  if (drafted) words.push(t("{0} of {1} tokens sent ahead were the right ones", found.drafts_kept, drafted));
  return `${words.join("; ")}.`;
}

/** Offer the answer's certificate, which the gateway keeps for a while. */
function certificate(link) {
  const line = make("p", "certificate");
  const said = make("span", "", ` ${t("signed, to check offline with")} `, make("code", "", "p2pinfer verify"));
  const button = make("button", "link", t("Certificate"));
  button.type = "button";
  button.addEventListener("click", async () => {
    try {
      const url = URL.createObjectURL(await download(link));
      const anchor = make("a", "");
      Object.assign(anchor, { href: url, download: `${link.split("/").pop()}.certificate` });
      anchor.click();
      URL.revokeObjectURL(url);
    } catch (error) {
      said.textContent = ` ${t(error.status ? "The gateway has it no longer." : "The gateway cannot be reached.")}`;
    }
  });
  line.append(button, said);
  return line;
}
