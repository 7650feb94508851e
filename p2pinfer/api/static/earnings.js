// What this machine did for others and others for it, by day and by peer.

import { shortName } from "./map.js";
import { fetchJson, RequestError } from "./stream.js";
import { language, number, t } from "./words.js";

const LOOK_MS = 60_000; // as often as statements are signed
const DAY_MS = 86_400_000;
const UNITS = 1000; // megabyte-rows in a gigabyte-row
const byId = (id) => document.getElementById(id);

const shown = (work) => number(work / UNITS, work && work < 10 * UNITS ? 2 : 0);

function make(tag, text, name) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

function showSums({ given, had, had_unnamed: unnamed }) {
  const sums = [
    [t("given"), shown(given)],
    [t("received"), shown(had)],
    ...(unnamed ? [[t("of it without a name"), shown(unnamed)]] : []),
    [given >= had ? t("others owe") : t("owed to others"), shown(Math.abs(given - had))],
  ];
  byId("sums").replaceChildren(
    ...sums.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(make("dt", name), make("dd", value));
      return pair;
    }),
  );
}

function showDays(days) {
  const most = Math.max(1, ...days.map(({ given, had }) => Math.max(given, had)));
  const bar = (name, work) => {
    const made = make("i", "", name);
    made.style.setProperty("--part", work / most);
    return made;
  };
  const dateOf = (day) => new Date(day * DAY_MS).toLocaleDateString(language, { day: "numeric", month: "short", timeZone: "UTC" });
  const columns = days.map(({ day, given, had }) => {
    const column = document.createElement("span");
    column.title = t("{0}: {1} given, {2} received", dateOf(day), shown(given), shown(had));
    column.append(bar("given", given), bar("had", had));
    return column;
  });
  byId("days").replaceChildren(...columns);
  const busy = days.filter(({ given, had }) => given || had).length;
  byId("days").setAttribute("aria-label", t("Work on {0} of {1} days; the table below has it by peer", busy, days.length));
  byId("days").dataset.from = dateOf(days[0].day);
  byId("days").dataset.to = dateOf(days.at(-1).day);
}

function showPeers(peers) {
  byId("none").hidden = peers.length > 0;
  byId("peers").hidden = !peers.length;
  byId("peers").tBodies[0].replaceChildren(
    ...peers.map((each) => {
      const row = document.createElement("tr");
      const name = make("th", shortName(each.peer));
      Object.assign(name, { title: each.peer, scope: "row" });
      row.append(name, ...[each.given, each.had, each.signed_by_it, each.signed_to_it].map((work) => make("td", shown(work))));
      return row;
    }),
  );
}

async function look() {
  try {
    const found = await fetchJson("/api/earnings");
    showSums(found);
    showDays(found.days);
    showPeers(found.peers);
    byId("problem").textContent = "";
  } catch (error) {
    byId("problem").textContent = error instanceof RequestError ? error.message : t("The gateway cannot be reached.");
  }
  setTimeout(look, LOOK_MS);
}

look();
