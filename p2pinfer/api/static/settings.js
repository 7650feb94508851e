// What the reader chose: how answers are made, the gateway's key, the colours.

import * as store from "./store.js";
import { retry } from "./stream.js";
import { t } from "./words.js";

const dialog = document.getElementById("settings");
const form = document.getElementById("settings-form");

/** Open the dialog, with a field in focus if one is named. */
export function openSettings(field) {
  if (dialog.open) return;
  for (const name of ["system", "key", ...store.NUMBERS]) form.elements[name].value = store.settings[name] ?? "";
  form.elements.tools.value = store.settings.tools ? JSON.stringify(store.settings.tools, null, 1) : "";
  form.elements.theme.value = store.settings.theme;
  form.elements.language.value = store.settings.language ?? "auto";
  dialog.showModal();
  if (field) form.elements[field].focus();
}

function paintTheme(theme = store.settings.theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Return the tools that were typed; undefined, and a word at the field, where they are no list. */
function typedTools() {
  const field = form.elements.tools;
  field.setCustomValidity("");
  if (!field.value.trim()) return [];
  try {
    const tools = JSON.parse(field.value);
    if (Array.isArray(tools)) return tools;
  } catch {
    // said below
  }
  field.setCustomValidity(t("This is no JSON list of tools."));
}

form.elements.tools.addEventListener("input", typedTools);
document.getElementById("open-settings").addEventListener("click", () => openSettings());
dialog.addEventListener("close", () => {
  const changes = { system: form.elements.system.value.trim(), key: form.elements.key.value.trim() };
  for (const name of store.NUMBERS) {
    const input = form.elements[name];
    changes[name] = input.value !== "" && input.checkValidity() ? input.valueAsNumber : null;
  }
  const isNewKey = changes.key !== (store.settings.key ?? "");
  const tools = typedTools();
  if (tools) changes.tools = tools.length ? tools : null;
  const language = form.elements.language.value;
  const isNewLanguage = language !== (store.settings.language ?? "auto");
  store.saveSettings({ ...changes, language, theme: form.elements.theme.value });
  paintTheme();
  if (isNewLanguage) location.reload();
  else if (isNewKey) retry();
});
form.addEventListener("change", (event) => {
  if (event.target.name === "theme") paintTheme(event.target.value);
});
