// The page: conversations on the left, the chat, and the swarm on the right.

import * as store from "./store.js";
import { chat, follow, RequestError } from "./stream.js";
import { showAnswers, showState } from "./map.js";
import { iconButton, showTurn } from "./turns.js";

const IDEAS = ["Why is the sky blue?", "Name three trees that lose their leaves.", "Write a haiku about the sea."];
const NEAR_END_PX = 80;
const NUMBERS = ["temperature", "max_tokens", "top_p", "seed"];
const byId = (id) => document.getElementById(id);
const [log, turns, question, send] = ["log", "turns", "question", "send"].map(byId);

let current = store.conversations[0] ?? store.newConversation();
let views = [];
let answering = null; // {control, conversation}

// The chat

function isAtEnd() {
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
}

function showConversation() {
  views = current.turns.map((turn) => showTurn(turn, again));
  turns.replaceChildren(...views.map((view) => view.item));
  views.forEach((view, at) => view.done(at === views.length - 1));
  byId("welcome").hidden = current.turns.length > 0;
  log.scrollTop = log.scrollHeight;
  showList();
}

function showList() {
  const items = store.conversations.map((each) => {
    const item = document.createElement("li");
    const open = document.createElement("button");
    open.className = "open";
    open.textContent = store.titleOf(each);
    if (each === current) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => choose(each));
    const remove = iconButton("bin", `Delete ${store.titleOf(each)}`, () => forget(each));
    item.append(open, remove);
    return item;
  });
  byId("chat-list").replaceChildren(...items);
}

function choose(conversation) {
  answering?.control.abort();
  current = conversation;
  showConversation();
  closePanels();
  question.focus();
}

function forget(conversation) {
  if (!confirm(`Delete “${store.titleOf(conversation)}”?`)) return;
  store.removeConversation(conversation.id);
  if (conversation === current) choose(store.conversations[0] ?? store.newConversation());
  else showList();
}

function bodyOf(conversation) {
  const messages = conversation.turns
    .filter((turn) => turn.text)
    .map(({ role, text }) => ({ role, content: text }));
  if (store.settings.system) messages.unshift({ role: "system", content: store.settings.system });
  const body = { model: "default", messages };
  for (const name of NUMBERS) if (typeof store.settings[name] === "number") body[name] = store.settings[name];
  return body;
}

async function ask(text) {
  current.turns.push({ role: "user", text });
  await answer();
}

async function again() {
  if (answering || !current.turns.length) return;
  if (current.turns.at(-1).role === "assistant") current.turns.pop();
  await answer();
}

async function answer() {
  const conversation = current;
  const body = bodyOf(conversation);
  const turn = { role: "assistant", text: "" };
  conversation.turns.push(turn);
  store.touch(conversation);
  showConversation();
  const view = views.at(-1);
  const control = new AbortController();
  answering = { control, conversation };
  setBusy(true);
  view.busy(true);
  view.live("the prompt is on its way through the swarm …");
  let painted = 0;
  let tokens = 0;
  let firstAt = 0;
  const paint = () => {
    painted = 0;
    const follows = isAtEnd();
    view.update();
    const seconds = (performance.now() - firstAt) / 1000;
    if (tokens > 1 && seconds > 0) view.live(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
    if (follows) log.scrollTop = log.scrollHeight;
  };
  try {
    for await (const chunk of chat(body, control.signal)) {
      const [choice] = chunk.choices;
      if (choice?.delta.content) {
        turn.text += choice.delta.content;
        if (!tokens++) firstAt = performance.now();
        painted ||= requestAnimationFrame(paint);
      }
      if (choice?.p2pinfer) turn.account = choice.p2pinfer;
      if (choice?.finish_reason === "length") turn.cut = true;
    }
  } catch (error) {
    if (control.signal.aborted) turn.stopped = true;
    else turn.problem = error instanceof RequestError ? error.message : "The gateway cannot be reached.";
  }
  cancelAnimationFrame(painted);
  answering = null;
  setBusy(false);
  store.saveConversations();
  if (conversation !== current) return;
  const follows = isAtEnd();
  view.busy(false);
  view.update();
  view.done(true);
  if (follows) log.scrollTop = log.scrollHeight;
  byId("spoken").textContent = turn.problem ?? (turn.stopped ? "Stopped." : turn.text);
}

function setBusy(is) {
  send.setAttribute("aria-label", is ? "Stop" : "Send");
  send.querySelector("use").setAttribute("href", is ? "#i-stop" : "#i-send");
  send.classList.toggle("stop", is);
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) {
    answering.control.abort();
    return;
  }
  const text = question.value.trim();
  if (!text) return;
  question.value = "";
  fit();
  ask(text);
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!answering) byId("ask").requestSubmit();
});
byId("new-chat").addEventListener("click", () => {
  choose(store.conversations.find((each) => !each.turns.length) ?? store.newConversation());
});
byId("ideas").replaceChildren(
  ...IDEAS.map((text) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.textContent = text;
    button.addEventListener("click", () => !answering && ask(text));
    item.append(button);
    return item;
  }),
);

// Panels of a narrow window

const panels = { "open-chats": "chats", "open-swarm": "swarm" };

function closePanels() {
  for (const [button, panel] of Object.entries(panels)) {
    byId(panel).classList.remove("open");
    byId(button).setAttribute("aria-expanded", "false");
  }
  byId("shade").hidden = true;
}

for (const [button, panel] of Object.entries(panels)) {
  byId(button).addEventListener("click", () => {
    const opens = !byId(panel).classList.contains("open");
    closePanels();
    byId(panel).classList.toggle("open", opens);
    byId(button).setAttribute("aria-expanded", String(opens));
    byId("shade").hidden = !opens;
    if (opens) byId(panel).querySelector("button")?.focus();
  });
}
byId("shade").addEventListener("click", closePanels);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("settings").open) return;
  if (!byId("shade").hidden) closePanels();
  else answering?.control.abort();
});

// Settings

const form = byId("settings-form");

byId("open-settings").addEventListener("click", () => {
  for (const name of ["system", "key", ...NUMBERS]) form.elements[name].value = store.settings[name] ?? "";
  form.elements.theme.value = store.settings.theme;
  byId("settings").showModal();
});
byId("settings").addEventListener("close", () => {
  const changes = { system: form.elements.system.value.trim(), key: form.elements.key.value.trim() };
  for (const name of NUMBERS) {
    const input = form.elements[name];
    changes[name] = input.value !== "" && input.checkValidity() ? input.valueAsNumber : null;
  }
  store.saveSettings({ ...changes, theme: form.elements.theme.value });
  paintTheme();
});
form.addEventListener("change", (event) => {
  if (event.target.name === "theme") paintTheme(event.target.value);
});
byId("forget").addEventListener("click", () => {
  if (!confirm("Delete all conversations in this browser?")) return;
  store.removeAll();
  choose(store.newConversation());
});

function paintTheme(theme = store.settings.theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

// The swarm

const status = byId("status");

function say(state, text, more = "") {
  status.dataset.state = state;
  if (status.textContent === text + more) return;
  const [all, rest] = [document.createElement("span"), document.createElement("span")];
  rest.className = "more";
  rest.textContent = more;
  all.append(text, rest);
  status.replaceChildren(all);
}

function onEvent(name, data) {
  if (name === "answers") return showAnswers(data);
  showState(data);
  byId("model").textContent = data.model.name;
  const count = data.peers.filter((peer) => peer.state === "serving").length;
  if (data.complete) say("ready", `${count} ${count === 1 ? "peer" : "peers"}`, ", all layers");
  else say("waiting", data.missing);
}

function onConnection(state, text) {
  document.body.classList.toggle("offline", state === "lost");
  if (state === "lost") say("lost", text || "no gateway; trying again");
}

showConversation();
question.focus();
follow(onEvent, onConnection);
