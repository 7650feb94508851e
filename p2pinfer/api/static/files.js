// Files that go along with a question, as text.

import { t } from "./words.js";

const FILE_BYTES_MAX = 1_000_000; // more than the longest context reads
const FILES_MAX = 20;
const UNNAMED = "text.txt"; // what is pasted without a name

const list = document.getElementById("attached");
const problem = document.getElementById("attach-problem");
let attached = []; // {name, text}

function show() {
  list.replaceChildren(
    ...attached.map((file) => {
      const item = document.createElement("li");
      const drop = document.createElement("button");
      drop.type = "button";
      drop.textContent = "×";
      drop.setAttribute("aria-label", t("Remove {0}", file.name));
      drop.addEventListener("click", () => put(attached.filter((each) => each !== file)));
      item.append(file.name, drop);
      return item;
    }),
  );
}

/** Have these files go along with the next question. */
export function put(files) {
  attached = files;
  problem.textContent = "";
  show();
}

/** Return the files, which are attached no longer. */
export function take() {
  const taken = attached;
  put([]);
  return taken;
}

async function textOf(file) {
  if (file.size > FILE_BYTES_MAX) throw new Error(t("{0} is longer than a megabyte.", file.name));
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return text;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
  }
  throw new Error(t("{0} is not text: this model reads text alone.", file.name));
}

async function attach(files) {
  problem.textContent = "";
  for (const file of files) {
    try {
      if (attached.length === FILES_MAX) throw new Error(t("At most {0} files go along with a question.", FILES_MAX));
      attached.push({ name: file.name || UNNAMED, text: await textOf(file) });
    } catch (error) {
      problem.textContent = error.message;
    }
  }
  show();
}

/** Return a question with its files, each in a fence that is longer than any within. */
export function withFiles({ text, files = [] }) {
  const blocks = files.map((file) => {
    const longest = Math.max(2, ...[...file.text.matchAll(/`+/g)].map(([ticks]) => ticks.length));
    const fence = "`".repeat(longest + 1);
    return `${file.name}:\n${fence}\n${file.text}\n${fence}`;
  });
  return [...blocks, text].filter(Boolean).join("\n\n");
}

const picker = document.getElementById("files");
document.getElementById("attach").addEventListener("click", () => picker.click());
picker.addEventListener("change", async () => {
  await attach([...picker.files]);
  picker.value = "";
});
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (carriesFiles(event)) event.preventDefault(); // else the browser opens the file
});
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  attach([...event.dataTransfer.files]);
});
document.getElementById("question").addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  attach([...event.clipboardData.files]);
});
