// Conversations and settings, kept in this browser. A full or forbidden storage loses nothing on screen.

const CONVERSATIONS = "p2pinfer.conversations";
const SETTINGS = "p2pinfer.settings";
const CONVERSATIONS_MAX = 100;
const TITLE_CHARS_MAX = 48;

export const NUMBERS = ["temperature", "max_tokens", "top_p", "seed"]; // as OpenAI names them

function read(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function readConversations() {
  const found = read(CONVERSATIONS, []);
  return Array.isArray(found) ? found.filter((each) => Array.isArray(each?.turns)) : [];
}

export const settings = { theme: "auto", ...read(SETTINGS, {}) };
export let conversations = readConversations();

export function saveSettings(changes) {
  Object.assign(settings, changes);
  write(SETTINGS, settings);
}

/** Keep what was said; the oldest conversations make room. */
function saveConversations() {
  conversations = conversations.filter((each) => each.turns.length).slice(0, CONVERSATIONS_MAX);
  while (!write(CONVERSATIONS, conversations) && conversations.length > 1) conversations.pop();
}

export function newConversation() {
  const made = { id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), turns: [] };
  conversations.unshift(made);
  return made;
}

export function titleOf(conversation) {
  const text = conversation.turns[0]?.text.trim().replace(/\s+/g, " ") ?? "";
  return text.length > TITLE_CHARS_MAX ? `${text.slice(0, TITLE_CHARS_MAX - 1)}…` : text;
}

export function removeConversation(id) {
  conversations = conversations.filter((each) => each.id !== id);
  saveConversations();
}

/** Return all conversations as a file's text. */
export function exported() {
  return JSON.stringify({ conversations: conversations.filter((each) => each.turns.length) }, null, 1);
}

const haveTexts = (list, ...names) =>
  list === undefined || (Array.isArray(list) && list.every((each) => names.every((name) => typeof each?.[name] === "string")));

function isTurn(turn) {
  if (!["user", "assistant"].includes(turn?.role) || typeof turn.text !== "string") return false;
  return haveTexts(turn.files, "name", "text") && haveTexts(turn.calls, "id", "name", "arguments");
}

/** Add the conversations of such a text that are not here; returns how many. */
export function imported(text) {
  let found;
  try {
    found = JSON.parse(text).conversations;
  } catch {
    return 0;
  }
  const here = new Set(conversations.map((each) => each.id));
  const good = (Array.isArray(found) ? found : []).filter(
    (each) => typeof each?.id === "string" && !here.has(each.id) && Array.isArray(each.turns) && each.turns.length && each.turns.every(isTurn),
  );
  conversations = [...conversations, ...good];
  saveConversations();
  return good.length;
}

export function removeAll() {
  conversations = [];
  saveConversations();
}

/** The one that was used last comes first. */
export function touch(conversation) {
  conversations = [conversation, ...conversations.filter((each) => each.id !== conversation.id)];
  saveConversations();
}

/** Take over what another tab of this page has saved, and tell. */
export function onOtherTab(tell) {
  addEventListener("storage", (event) => {
    if (event.key !== CONVERSATIONS) return;
    const empty = conversations.filter((each) => !each.turns.length);
    conversations = [...empty, ...readConversations()];
    tell();
  });
}
