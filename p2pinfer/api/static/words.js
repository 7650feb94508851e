// The page's words in the reader's language. English stands in the code; the other languages have
// a table, which the terminal uses too. {0}, {1} … stand for what changes.

import { settings } from "./store.js";

const LANGUAGES = ["en", "es"];

function preferred() {
  if (LANGUAGES.includes(settings.language)) return settings.language;
  return navigator.languages.map((each) => each.slice(0, 2)).find((each) => LANGUAGES.includes(each)) ?? "en";
}

export const language = preferred();
document.documentElement.lang = language;

const table = language === "en" ? {} : await (await fetch(`/static/${language}.json`)).json().catch(() => ({}));

/** Return a text in the reader's language, with its values filled in. */
export function t(text, ...values) {
  return (table[text] ?? text).replace(/\{(\d)\}/g, (_, at) => values[at]);
}

/** Return a number as the reader writes it. */
export function number(value, digits = 0) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

const FIXED_CHARS_MIN = 8; // of a sentence by which a whole one is recognised: "{0} of {1}" would be found in any
const escaped = (text) => text.replace(/[.*+?^$()|[\]\\]/g, "\\$&");
const sentences = Object.keys(table)
  .filter((text) => text.includes("{0}") && text.replace(/\{\d\}/g, "").length >= FIXED_CHARS_MIN)
  .sort((a, b) => b.length - a.length)
  .map((text) => [new RegExp(`^${escaped(text).replace(/\{\d\}/g, "(.+?)")}$`), text]);

/** Return a text that came from the gateway, which speaks English; what the table lacks stays so. */
export function translated(text) {
  if (text in table) return table[text];
  if (text.includes("; ")) return text.split("; ").map(translated).join("; ");
  for (const [pattern, sentence] of sentences) {
    const found = pattern.exec(text);
    if (!found) continue;
    const values = [];
    [...sentence.matchAll(/\{(\d)\}/g)].forEach(([, at], index) => (values[at] = translated(found[index + 1])));
    return t(sentence, ...values);
  }
  return text;
}

const ATTRIBUTES = ["aria-label", "placeholder", "title"];

function translatePage() {
  const texts = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { currentNode: node } = texts;
    const text = node.data.trim();
    if (text in table) node.data = node.data.replace(text, table[text]);
  }
  for (const name of ATTRIBUTES)
    for (const each of document.querySelectorAll(`[${name}]`)) each.setAttribute(name, t(each.getAttribute(name)));
}

translatePage();
