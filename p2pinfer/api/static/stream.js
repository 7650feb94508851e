// Server-sent events over fetch, which can carry a key (EventSource cannot) and be stopped.

import { settings } from "./store.js";

const RETRY_MS = 1000;
const RETRY_MS_MAX = 15000;
const SILENCE_MS_MAX = 45000; // three of the gateway's pings

export class RequestError extends Error {}

function headers(more) {
  return settings.key ? { ...more, authorization: `Bearer ${settings.key}` } : more;
}

async function refusal(reply) {
  const body = await reply.json().catch(() => null);
  return new RequestError(body?.error?.message ?? `The gateway answered ${reply.status}.`);
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
  const reply = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers({ "content-type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!reply.ok) throw await refusal(reply);
  let finished = false;
  for await (const { data } of eventsOf(reply)) {
    if (data === "[DONE]") {
      finished = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new RequestError(chunk.error.message);
    yield chunk;
  }
  if (!finished) throw new RequestError("The gateway broke off.");
}

/** Follow the swarm for ever, and come back by itself after every interruption. */
export async function follow(onEvent, onState) {
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
      const reply = await fetch("/api/events", { headers: headers({}), signal: control.signal });
      if (!reply.ok) throw await refusal(reply);
      wait = RETRY_MS;
      onState("connected");
      for await (const { name, data } of eventsOf(reply, alive)) onEvent(name, JSON.parse(data));
      onState("lost");
    } catch (error) {
      onState("lost", error instanceof RequestError ? error.message : "");
    }
    clearTimeout(watchdog);
    await new Promise((resume) => setTimeout(resume, wait));
    wait = Math.min(2 * wait, RETRY_MS_MAX);
  }
}
