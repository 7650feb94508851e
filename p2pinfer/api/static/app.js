// The page: conversations on the left, the chat, and the swarm on the right.

import * as store from "./store.js";
import { chat, follow, listModels, mark, RequestError } from "./stream.js";
import { showAnswers, showRoute, showState } from "./map.js";
import { closePanels } from "./panels.js";
import { openSettings } from "./settings.js";
import { put, take, withFiles } from "./files.js";
import { iconButton, showTurn } from "./turns.js";
import { onLibrary } from "./rich.js";
import { number, t, translated } from "./words.js";

const IDEAS = ["Why is the sky blue?", "Name three trees that lose their leaves.", "Write a haiku about the sea."];
const NEAR_END_PX = 80;
const BAR_TOKENS_MIN = 100; // of a prompt; a shorter one is read before the eye finds the bar
const AT_HOME = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname); // answers are marked nowhere else
const touch = matchMedia("(hover: none)");
const byId = (id) => document.getElementById(id);
const [log, turns, question, send] = ["log", "turns", "question", "send"].map(byId);

let current = store.conversations[0] ?? store.newConversation();
let views = [];
const answering = new Map(); // id of a conversation → {control, turn, live, id}: it goes on unseen

// The chat

function isAtEnd() {
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
}

function showConversation() {
  const running = answering.get(current.id);
  const deeds = { onAgain: again, onEdit: edit, onNew: begin, onResults: () => answer(current), onMark: AT_HOME && keep };
  views = current.turns.map((turn) => showTurn(turn, deeds));
  turns.replaceChildren(...views.map((view) => view.item));
  views.forEach((view, at) => {
    if (current.turns[at] !== running?.turn) return view.done(!running && at === views.length - 1);
    view.busy(true);
    view.live(running.live, running.share);
  });
  byId("welcome").hidden = current.turns.length > 0;
  log.scrollTop = log.scrollHeight;
  showBusy();
  showList();
  showRoute(running?.id, current.turns.findLast((turn) => turn.account)?.account.route);
}

function showList() {
  const items = store.conversations.map((each) => {
    const item = document.createElement("li");
    const open = document.createElement("button");
    open.className = "open";
    open.textContent = titleOf(each);
    if (each === current) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => choose(each));
    item.append(open);
    if (answering.has(each.id)) {
      const mark = document.createElement("span");
      mark.className = "working";
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", t("is being answered"));
      item.append(mark);
    }
    item.append(iconButton("bin", t("Delete {0}", titleOf(each)), () => forget(each)));
    return item;
  });
  byId("chat-list").replaceChildren(...items);
}

function titleOf(conversation) {
  return store.titleOf(conversation) || t("New conversation");
}

function choose(conversation) {
  current = conversation;
  showConversation();
  closePanels();
  question.focus();
}

function stop(conversation) {
  answering.get(conversation.id)?.control.abort();
}

function forget(conversation) {
  if (!confirm(t("Delete “{0}”?", titleOf(conversation)))) return;
  stop(conversation);
  answering.delete(conversation.id);
  store.removeConversation(conversation.id);
  if (conversation === current) choose(store.conversations[0] ?? store.newConversation());
  else showList();
}

const picker = byId("models");

/** Let the reader choose where the swarm serves several models. */
async function showModels() {
  const models = await listModels().catch(() => []);
  picker.replaceChildren(...models.map(({ id, p2pinfer }) => new Option(p2pinfer.name, id)));
  if (models.some(({ id }) => id === store.settings.model)) picker.value = store.settings.model;
  picker.hidden = models.length < 2;
  byId("model").hidden = !picker.hidden;
}

picker.addEventListener("change", () => store.saveSettings({ model: picker.value }));

byId("export-chats").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([store.exported()], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = "p2pinfer-conversations.json";
  link.click();
  URL.revokeObjectURL(url);
});
byId("import-chats").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = "";
  const count = file ? store.imported(await file.text()) : 0;
  byId("spoken").textContent = count
    ? t(count === 1 ? "{0} conversation imported" : "{0} conversations imported", count)
    : t("This file holds no new conversations.");
  showList();
});

/** Return what a turn was, as OpenAI writes it; one that came to nothing was none. */
function messagesOf(turn) {
  if (turn.role === "user") return [{ role: "user", content: withFiles(turn) }];
  if (!turn.calls) return turn.text ? [{ role: "assistant", content: turn.text }] : [];
  const calls = turn.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
  const results = turn.calls.map(({ id, result = "" }) => ({ role: "tool", tool_call_id: id, content: result }));
  return [{ role: "assistant", content: turn.text || null, tool_calls: calls }, ...results];
}

function bodyOf(conversation) {
  const messages = conversation.turns.flatMap(messagesOf);
  if (store.settings.system) messages.unshift({ role: "system", content: store.settings.system });
  const body = { model: picker.hidden ? "default" : picker.value, messages };
  if (store.settings.tools) body.tools = store.settings.tools;
  for (const name of store.NUMBERS) if (typeof store.settings[name] === "number") body[name] = store.settings[name];
  return body;
}

/** Keep an answer as one to learn from, or the text that it should have been. */
async function keep(turn, text) {
  const conversation = current;
  const before = conversation.turns.slice(0, conversation.turns.indexOf(turn)).flatMap(messagesOf);
  if (store.settings.system) before.unshift({ role: "system", content: store.settings.system });
  const count = await mark([...before, { role: "assistant", content: text }]);
  if (text !== turn.text) {
    turn.text = text;
    delete turn.account; // which is of what the swarm said
    store.touch(conversation);
    if (conversation === current) showConversation();
  }
  byId("spoken").textContent = t("Kept on this machine, {0} in all; p2pinfer marked shows them.", count);
}

async function ask(text) {
  const files = take();
  current.turns.push({ role: "user", text, ...(files.length && { files }) });
  await answer(current);
}

async function again() {
  if (answering.has(current.id) || !current.turns.length) return;
  if (current.turns.at(-1).role === "assistant") current.turns.pop();
  await answer(current);
}

/** Put the last question back into the field, to be asked otherwise. */
function edit() {
  if (answering.has(current.id)) return;
  current.turns.pop();
  const turn = current.turns.pop();
  question.value = turn?.text ?? "";
  put(turn?.files ?? []);
  store.touch(current);
  showConversation();
  fit();
  question.focus();
}

function begin() {
  choose(store.conversations.find((each) => !each.turns.length) ?? store.newConversation());
}

async function answer(conversation) {
  const body = bodyOf(conversation);
  const turn = { role: "assistant", text: "" };
  const control = new AbortController();
  const running = { control, turn, live: t("the prompt is on its way through the swarm …") };
  conversation.turns.push(turn);
  answering.set(conversation.id, running);
  store.touch(conversation);
  if (conversation === current) showConversation();
  else showList();
  let painted = 0;
  const paint = () => {
    painted = 0;
    if (conversation !== current) return;
    const follows = isAtEnd();
    views.at(-1).update();
    views.at(-1).live(running.live, running.share);
    if (follows) log.scrollTop = log.scrollHeight;
  };
  running.paint = () => (painted ||= requestAnimationFrame(paint));
  try {
    await untilLoaded(running);
    await listen(body, running);
  } catch (error) {
    if (control.signal.aborted) turn.stopped = !running.ended;
    else if (error instanceof RequestError) {
      turn.problem = error.message;
      turn.refused = error.status === 400; // asked again, it is refused again
    } else turn.problem = t("The gateway cannot be reached.");
  }
  cancelAnimationFrame(painted);
  if (answering.delete(conversation.id)) store.touch(conversation); // else it was deleted meanwhile
  if (conversation === current) finish(turn);
  showList();
}

/** While the gateway loads, a question waits here. */
async function untilLoaded(running) {
  if (!loading) return;
  const before = running.live;
  running.live = t("waiting until the model is loaded …");
  running.paint();
  await new Promise((resolve) => {
    running.control.signal.addEventListener("abort", resolve);
    loading.waiting.push(resolve);
  });
  running.control.signal.throwIfAborted();
  running.live = before;
  running.paint();
}

async function listen(body, running) {
  const { control, turn } = running;
  let tokens = 0;
  let firstAt = 0;
  for await (const chunk of chat(body, control.signal)) {
    const [choice] = chunk.choices;
    if (running.id !== chunk.id) {
      running.id = chunk.id;
      if (answering.get(current.id) === running) showRoute(chunk.id);
    }
    const thought = choice?.delta.reasoning_content;
    if (thought || choice?.delta.content) {
      if (thought) turn.thoughts = (turn.thoughts ?? "") + thought;
      else turn.text += choice.delta.content;
      if (!tokens++) firstAt = performance.now();
      const seconds = (performance.now() - firstAt) / 1000;
      running.live = tokens > 1 && seconds ? t("{0} tokens/s", number((tokens - 1) / seconds, 1)) : "";
      running.share = undefined;
      running.paint();
    }
    for (const call of choice?.delta.tool_calls ?? []) {
      turn.calls ??= [];
      const made = (turn.calls[call.index] ??= { id: call.id, name: "", arguments: "" });
      made.name += call.function?.name ?? "";
      made.arguments += call.function?.arguments ?? "";
      running.paint();
    }
    if (choice?.p2pinfer) turn.account = choice.p2pinfer;
    if (choice?.finish_reason === "length") turn.cut = true;
    if (choice?.finish_reason) {
      running.ended = true;
      running.live = t("checking what the peers signed …");
      running.paint();
    }
  }
}

function finish(turn) {
  const view = views.at(-1);
  const follows = isAtEnd();
  view.busy(false);
  view.update();
  view.done(true);
  showBusy();
  showRoute(undefined, turn.account?.route);
  if (follows) log.scrollTop = log.scrollHeight;
  byId("spoken").textContent = turn.problem ?? (turn.stopped ? t("Stopped.") : turn.text);
}

function showBusy() {
  const is = answering.has(current.id);
  send.setAttribute("aria-label", t(is ? "Stop" : "Send"));
  send.querySelector("use").setAttribute("href", is ? "#i-stop" : "#i-send");
  send.classList.toggle("stop", is);
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering.has(current.id)) {
    stop(current);
    if (!touch.matches) question.focus(); // what is typed next goes there; a phone would open its keyboard
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
  if (!answering.has(current.id)) byId("ask").requestSubmit();
});
byId("new-chat").addEventListener("click", begin);
byId("ideas").replaceChildren(
  ...IDEAS.map((text) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.textContent = t(text);
    button.addEventListener("click", () => !answering.has(current.id) && ask(t(text)));
    item.append(button);
    return item;
  }),
);
byId("forget").addEventListener("click", () => {
  if (!confirm(t("Delete all conversations in this browser?"))) return;
  for (const { control } of answering.values()) control.abort();
  answering.clear();
  store.removeAll();
  choose(store.newConversation());
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("settings").open) return;
  if (!closePanels()) stop(current);
});
store.onOtherTab(() => {
  if (answering.size) return; // ours are newer, and saved in a moment
  current = store.conversations.find((each) => each.id === current.id) ?? current;
  showConversation();
});

// The swarm

const status = byId("status");
let askedForKey = false;

function say(state, text, more = "") {
  status.dataset.state = state;
  if (status.textContent === text + more) return;
  const [all, rest] = [document.createElement("span"), document.createElement("span")];
  rest.className = "more";
  rest.textContent = more;
  all.append(text, rest);
  status.replaceChildren(all);
}

let loading = null; // {waiting: who is notified once it is over}

function showLoading({ text, share }) {
  loading ??= { waiting: [] };
  const box = byId("loading");
  box.hidden = false;
  box.querySelector("progress").value = share;
  box.querySelector("span").textContent = translated(text);
  say("waiting", t("loading {0} %", Math.round(100 * share)));
}

function loaded() {
  if (!byId("loading").hidden || !picker.length) showModels();
  byId("loading").hidden = true;
  const waiting = loading?.waiting ?? [];
  loading = null;
  for (const resume of waiting) resume();
}

/** Show how far the prompt of an answer that has no token yet is read, where it is clear which is ours. */
function showReading(answers) {
  const known = new Set([...answering.values()].map(({ id }) => id));
  const ours = [...answering.values()].filter(({ id }) => !id);
  const unknown = answers.filter(({ id, tokens }) => !tokens && !known.has(id));
  if (ours.length !== 1 || unknown.length !== 1) return;
  const [{ prompt_tokens: all, read_tokens: read }] = unknown;
  if (all < BAR_TOKENS_MIN) return;
  ours[0].live = t("reading: {0} of {1} tokens", number(read), number(all));
  ours[0].share = read / all;
  ours[0].paint();
}

function onEvent(name, data) {
  if (name === "loading") return showLoading(data);
  if (name === "answers") {
    showReading(data);
    return showAnswers(data);
  }
  loaded();
  showState(data);
  byId("model").textContent = data.model.name;
  const count = data.peers.filter((peer) => peer.state === "serving").length;
  if (data.complete) say("ready", t(count === 1 ? "{0} peer" : "{0} peers", count), t(", all layers"));
  else say("waiting", translated(data.missing));
}

function onConnection(error) {
  document.body.classList.toggle("offline", error !== null);
  if (error === null) return;
  if (error instanceof RequestError && error.status === 401) {
    say("lost", t("needs an API key"));
    if (!askedForKey) openSettings("key");
    askedForKey = true;
  } else say("lost", error instanceof RequestError ? translated(error.message) : t("no gateway; trying again"));
}

onLibrary(() => views.forEach((view) => view.update()));
showConversation();
question.focus();
follow(onEvent, onConnection);
