// The side panels of a narrow window: one is open at a time.

const PANELS = { "open-chats": "chats", "open-swarm": "swarm" };
const byId = (id) => document.getElementById(id);

/** Close what is open, and give the focus back to what opened it; says whether anything was. */
export function closePanels() {
  let closed = false;
  for (const [button, panel] of Object.entries(PANELS)) {
    if (!byId(panel).classList.contains("open")) continue;
    closed = true;
    byId(panel).classList.remove("open");
    byId(button).setAttribute("aria-expanded", "false");
    if (byId(panel).contains(document.activeElement)) byId(button).focus();
  }
  byId("shade").hidden = true;
  return closed;
}

for (const [button, panel] of Object.entries(PANELS)) {
  byId(button).addEventListener("click", () => {
    const opens = !byId(panel).classList.contains("open");
    closePanels();
    if (!opens) return;
    byId(panel).classList.add("open");
    byId(button).setAttribute("aria-expanded", "true");
    byId("shade").hidden = false;
    (byId(panel).querySelector("button") ?? byId(panel)).focus();
  });
}
byId("shade").addEventListener("click", closePanels);
