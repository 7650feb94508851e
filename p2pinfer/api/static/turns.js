// One question or answer on the page, and the account under an answer.

import { render } from "./markdown.js";
import { colourOf, layersText, shortName } from "./map.js";

const COPIED_MS = 1500;

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
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

/** Show a turn; returns what lets its text and account change. */
export function showTurn(turn, onAgain) {
  const item = make("li", `turn ${turn.role}`);
  const body = make("div", "said");
  item.append(make("span", "unseen", turn.role === "user" ? "You asked:" : "The answer:"), body);
  const foot = make("div", "foot");
  if (turn.role === "assistant") item.append(foot);
  const view = {
    item,
    busy(is) {
      item.classList.toggle("busy", is);
      item.setAttribute("aria-busy", String(is));
    },
    update() {
      if (turn.role === "user") body.textContent = turn.text;
      else body.replaceChildren(...render(turn.text));
      if (turn.problem) body.append(make("p", "problem", turn.problem));
    },
    live(text) {
      foot.replaceChildren(make("span", "live", text));
    },
    done(isLast) {
      foot.replaceChildren();
      if (turn.account) foot.append(account(turn.account, turn.stopped));
      else if (turn.stopped) foot.append(make("span", "live", "stopped"));
      const tools = make("span", "tools");
      const copy = iconButton("copy", "Copy", async () => {
        await navigator.clipboard.writeText(turn.text);
        copy.querySelector("use").setAttribute("href", "#i-check");
        setTimeout(() => copy.querySelector("use").setAttribute("href", "#i-copy"), COPIED_MS);
      });
      if (turn.text) tools.append(copy);
      if (isLast) tools.append(iconButton("again", "Answer again", onAgain));
      foot.append(tools);
    },
  };
  view.update();
  return view;
}

function summaryOf(found, stopped) {
  const peers = new Set(found.route.map((hop) => hop.peer)).size;
  const words = [`${peers} ${peers === 1 ? "peer" : "peers"}`, `${found.tokens} tokens`];
  if (found.tokens > 1) words.push(`${found.tokens_per_second.toFixed(1)} tokens/s`);
  if (stopped) words.push("stopped");
  return words.join(" · ");
}

/** Say who made an answer, how fast, and what stands for it. */
function account(found, stopped) {
  const details = make("details", "account");
  const summary = make("summary", "");
  summary.append(make("span", "trust-mark"), summaryOf(found, stopped));
  summary.firstChild.dataset.trust = found.trust ? (found.trust.held ? "held" : "broken") : "none";
  if (found.trust) summary.append(make("span", "trust-word", trustWord(found.trust)));
  const list = make("ol", "route");
  for (const hop of found.route) {
    const item = make("li", "");
    const dot = make("i", "dot");
    dot.dataset.colour = colourOf(hop.peer);
    item.append(dot, make("code", "", shortName(hop.peer)), ` ran ${layersText(...hop.layers.split(":").map(Number))}`);
    item.title = hop.peer;
    list.append(item);
  }
  const first = `The first token came after ${Math.round(found.time_to_first_token_ms)} ms; `;
  const reused = `${found.reused_tokens} tokens of the conversation were still held by the stages.`;
  details.append(summary, list, make("p", "", first + reused), ...evidence(found.trust));
  return details;
}

function trustWord({ held, audits }) {
  if (!held) return "not trusted";
  const seen = audits.filter((each) => each.verdict !== "not replayed").length;
  return seen ? `receipts join up, ${seen} audited` : "receipts join up";
}

/** Say what was checked, no more and no less. */
function evidence(trust) {
  if (!trust) {
    const text = "Nothing of this answer was checked: that each peer computed what it should is taken on trust.";
    return [make("p", "", text)];
  }
  const said = [make("p", trust.held ? "" : "problem", `${trust.line}.`)];
  if (trust.audits.length) {
    const list = make("ul", "audits");
    for (const each of trust.audits) {
      const by = each.by.length ? ` by ${each.by.map(shortName).join(" and ")}` : "";
      list.append(make("li", "", `${shortName(each.peer)}, layers ${each.layers}, run again${by}: ${each.verdict}`));
    }
    said.push(list);
  }
  return said;
}
