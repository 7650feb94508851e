// Coloured code and set formulas, by two libraries that are fetched when an answer first needs them.

const CODE_CHARS_MAX = 20_000; // coloured again with every token of a block that grows
const TEX_CHARS_MAX = 2_000;
const KEPT_MAX = 200; // blocks and formulas of what is drawn again with every token

const libraries = new Map(); // name → the library, or undefined while it is on its way
const kept = new Map();
let tell = () => {};

/** Call back when a library has come: what is shown can be drawn better. */
export function onLibrary(callback) {
  tell = callback;
}

function library(name, load) {
  if (libraries.has(name)) return libraries.get(name);
  libraries.set(name, undefined);
  load().then(
    (found) => {
      libraries.set(name, found);
      kept.clear();
      tell();
    },
    () => {}, // the gateway is gone: the text stays plain
  );
}

/** Return a copy of the nodes that were made for a key. */
function remembered(key, make) {
  if (!kept.has(key)) {
    kept.set(key, make());
    if (kept.size > KEPT_MAX) kept.delete(kept.keys().next().value);
  }
  return kept.get(key).cloneNode(true);
}

async function loadTemml() {
  const script = document.createElement("script");
  script.src = "/static/vendor/temml.js";
  await new Promise((resolve, reject) => {
    Object.assign(script, { onload: resolve, onerror: reject });
    document.head.append(script);
  });
  return globalThis.temml;
}

/** Return a formula as MathML, or as it was written where it cannot be read. */
export function formula(tex, written, display) {
  const temml = tex.length <= TEX_CHARS_MAX && library("temml", loadTemml);
  if (!temml) return document.createTextNode(written);
  return remembered(`${display} ${tex}`, () => {
    const made = document.createElement(display ? "div" : "span");
    made.className = "formula";
    try {
      temml.render(tex, made, { displayMode: display, throwOnError: true, trust: false });
    } catch {
      made.replaceChildren(written);
    }
    return made;
  });
}

/** Rebuild coloured code from texts and classes alone: nothing else of the markup is let through. */
function rebuilt(markup) {
  const made = document.createDocumentFragment();
  for (const node of markup.childNodes) {
    if (node.nodeType === Node.TEXT_NODE) made.append(node.data);
    else {
      const span = document.createElement("span");
      span.className = [...node.classList].filter((name) => name.startsWith("hljs-")).join(" ");
      span.append(rebuilt(node));
      made.append(span);
    }
  }
  return made;
}

/** Return a block's code, coloured where its language is known. */
export function colouredCode(text, name) {
  const plain = document.createTextNode(text);
  if (!name || text.length > CODE_CHARS_MAX) return plain;
  const hljs = library("highlight", async () => (await import("./vendor/highlight.js")).default);
  if (!hljs?.getLanguage(name)) return plain;
  return remembered(`${name} ${text}`, () => {
    const { value } = hljs.highlight(text, { language: name, ignoreIllegals: true });
    return rebuilt(new DOMParser().parseFromString(value, "text/html").body);
  });
}
