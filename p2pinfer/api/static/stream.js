// Server-sent events over fetch, which can carry a key (EventSource cannot) and be stopped.

import { settings } from "./store.js";
import { t } from "./words.js";

const RETRY_MS = 1000;
const LOADED_MS = 50;
const RETRY_MS_MAX = 15000;
const SILENCE_MS_MAX = 45000; // three of the gateway's pings

export class RequestError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(more) {
  return settings.key ? { ...more, authorization: `Bearer ${settings.key}` } : more;
}

async function send(path, options) {
  const reply = await fetch(path, { ...options, headers: headers(options.headers) });
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => null);
  throw new RequestError(body?.error?.message ?? t("The gateway answered {0}.", reply.status), reply.status);
}

/** Yield {name, data} of each event; comments are skipped. */
async function* eventsOf(reply, alive = () => {}) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      buffer += value;
      const events = buffer.split("\n\n");
      buffer = events.pop();
      for (const text of events) {
        let name = "message";
        let data = "";
        for (const line of text.split("\n")) {
          if (line.startsWith("event: ")) name = line.slice(7);
          if (line.startsWith("data: ")) data += line.slice(6);
        }
        if (data) yield { name, data };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Yield the chunks of a chat completion. */
export async function* chat(body, signal) {
  const reply = await send("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const { data } of eventsOf(reply)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new RequestError(chunk.error.message);
    yield chunk;
  }
  throw new RequestError(t("The gateway broke off."));
}

/** Return all models that can be asked. */
export async function listModels() {
  return (await (await send("/v1/models", {})).json()).data;
}

/** Fetch what a path says now. */
export async function fetchJson(path) {
  return (await send(path, {})).json();
}

/** Keep a conversation whose last answer is right; returns how many are kept. */
export async function mark(messages) {
  const reply = await send("/api/marked", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ messages }),
  });
  return (await reply.json()).marked;
}

/** Fetch a file. */
export async function download(path) {
  return (await send(path, {})).blob();
}

let wake = () => {};

/** Try again now, and not only after the pause. */
export function retry() {
  wake();
}

addEventListener("online", retry);

/** Follow the swarm for ever, and come back by itself after every interruption. */
export async function follow(onEvent, onConnection) {
  let wait = RETRY_MS;
  for (;;) {
    const control = new AbortController();
    let watchdog = 0;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => control.abort(), SILENCE_MS_MAX);
    };
    try {
      alive();
      const reply = await send("/api/events", { signal: control.signal });
      wait = RETRY_MS;
      onConnection(null);
      let last;
      for await (const { name, data } of eventsOf(reply, alive)) onEvent((last = name), JSON.parse(data));
      if (last === "loading") wait = LOADED_MS; // what is there now is asked for at once
      else onConnection(new Error("the gateway ended the stream"));
    } catch (error) {
      onConnection(error);
    }
    clearTimeout(watchdog);
    let timer;
    await new Promise((resume) => {
      wake = resume;
      timer = setTimeout(resume, wait);
    });
    clearTimeout(timer);
    wait = Math.min(2 * wait, RETRY_MS_MAX);
  }
}
