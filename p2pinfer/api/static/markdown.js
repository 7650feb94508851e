// The little of Markdown that models write, as DOM nodes. Text only ever becomes text: nothing that
// a model says is parsed as HTML, and links lead to http and https alone.

import { colouredCode, formula } from "./rich.js";
import { t } from "./words.js";

const INLINE = new RegExp(
  [
    /(?<ticks>`+)(?<code>[^`]|[^`][\s\S]*?[^`])\k<ticks>(?!`)/,
    /\*\*(?=\S)(?<bold>[\s\S]+?)(?<=\S)\*\*/,
    /(?<![\w*])\*(?=[^\s*])(?<italic>[^*\n]+?)(?<=\S)\*(?![\w*])/,
    /\[(?<label>[^\]\n]+)\]\((?<href>https?:\/\/[^\s)]+)\)/,
    /\\\((?<bracketed>[\s\S]+?)\\\)/,
    /(?<![\w\\$])\$(?=[^\s$])(?<tex>[^$\n]*?[^\s\\$])\$(?![\w$])/, // but not "$5 or $6"
  ]
    .map((each) => each.source)
    .join("|"),
);

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function hostOf(href) {
  try {
    return new URL(href).host;
  } catch {
    return t("no address");
  }
}

function inline(text) {
  const nodes = [];
  while (text) {
    const match = INLINE.exec(text);
    if (!match) break;
    const [whole] = match;
    const { code, bold, italic, label, href } = match.groups;
    const tex = match.groups.tex ?? match.groups.bracketed;
    if (match.index) nodes.push(text.slice(0, match.index));
    if (code !== undefined) nodes.push(element("code", code.trim() || code));
    else if (bold !== undefined) nodes.push(element("strong", ...inline(bold)));
    else if (italic !== undefined) nodes.push(element("em", ...inline(italic)));
    else if (tex !== undefined) nodes.push(formula(tex.trim(), whole, false));
    else {
      const link = element("a", label);
      Object.assign(link, { href, target: "_blank", rel: "noopener noreferrer nofollow" });
      nodes.push(link);
      const host = hostOf(href); // a model makes links up: show where each leads
      if (host !== label.trim()) nodes.push(Object.assign(element("span", ` (${host})`), { className: "host" }));
    }
    text = text.slice(match.index + whole.length);
  }
  if (text) nodes.push(text);
  return nodes;
}

function fence(lines, at) {
  const open = /^\s*(```+|~~~+)\s*([\w+#.-]*)\s*$/.exec(lines[at]);
  if (!open) return null;
  let end = at + 1;
  while (end < lines.length && !lines[end].trim().startsWith(open[1])) end++;
  const code = element("code", colouredCode(lines.slice(at + 1, end).join("\n"), open[2].toLowerCase()));
  const box = element("pre", code);
  box.tabIndex = 0; // to be scrolled by keys
  const copy = element("button", t("Copy"));
  copy.type = "button";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    copy.textContent = t("Copied");
  });
  const block = element("figure", element("figcaption", element("span", open[2]), copy), box);
  block.className = "code";
  return { block, next: end + 1 };
}

/** A formula on lines of its own. */
function displayed(lines, at) {
  const open = /^\s*(\$\$|\\\[)/.exec(lines[at])?.[1];
  if (!open) return null;
  const close = open === "$$" ? "$$" : "\\]";
  for (let end = at; end < lines.length && lines[end].trim(); end++) {
    const whole = lines.slice(at, end + 1).join("\n").trim();
    if (whole.length < 2 * open.length || !whole.endsWith(close)) continue;
    return { block: formula(whole.slice(2, -2).trim(), whole, true), next: end + 1 };
  }
  return null;
}

const ITEM = /^(\s*)([-*+•]|\d{1,3}[.)])\s+(.*)$/;

function list(lines, at) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const block = element(ordered ? "ol" : "ul");
  if (ordered) block.start = parseInt(first[2], 10);
  let next = at;
  for (; next < lines.length; next++) {
    const item = ITEM.exec(lines[next]);
    if (item && item[1].length > first[1].length + 1 && block.lastChild) {
      const inner = list(lines, next);
      block.lastChild.append(inner.block);
      next = inner.next - 1;
    } else if (item && item[1].length >= first[1].length && /\d/.test(item[2]) === ordered) {
      block.append(element("li", ...inline(item[3])));
    } else if (/^\s{2,}\S/.test(lines[next]) && block.lastChild) {
      block.lastChild.append(" ", ...inline(lines[next].trim()));
    } else if (lines[next].trim() || !ITEM.test(lines[next + 1] ?? "")) break;
  }
  return { block, next };
}

function heading(lines, at) {
  const match = /^(#{1,6})\s+(.*?)\s*#*$/.exec(lines[at]);
  return match && { block: element(`h${Math.min(6, match[1].length + 2)}`, ...inline(match[2])), next: at + 1 };
}

const QUOTES_MAX = 8; // within each other; what a peer spoils may be nothing but these marks

function quote(lines, at, depth) {
  if (depth === QUOTES_MAX) return null;
  let next = at;
  while (next < lines.length && /^\s*>/.test(lines[next])) next++;
  if (next === at) return null;
  const inner = lines.slice(at, next).map((line) => line.replace(/^\s*> ?/, ""));
  return { block: element("blockquote", ...render(inner.join("\n"), depth + 1)), next };
}

const cellsOf = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines, at) {
  if (!lines[at].includes("|") || !/^\s*\|?(\s*:?-+:?\s*\|)+\s*(:?-+:?\s*)?$/.test(lines[at + 1] ?? "")) return null;
  const line = (name, text) => element("tr", ...cellsOf(text).map((cell) => element(name, ...inline(cell))));
  const block = element("table", line("th", lines[at]));
  let next = at + 2;
  for (; next < lines.length && lines[next].includes("|"); next++) block.append(line("td", lines[next]));
  return { block, next };
}

/** Return the nodes that show a text, which stands within `depth` quotes. */
export function render(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const nodes = [];
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) nodes.push(element("p", ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; ) {
    const special =
      fence(lines, at) ?? displayed(lines, at) ?? heading(lines, at) ?? list(lines, at) ?? quote(lines, at, depth) ?? table(lines, at);
    if (special) {
      flush();
      nodes.push(special.block);
      at = special.next;
    } else {
      if (lines[at].trim()) paragraph.push(lines[at]);
      else flush();
      at++;
    }
  }
  flush();
  return nodes;
}
