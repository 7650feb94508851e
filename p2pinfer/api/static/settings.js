// What the reader chose: how answers are made, the gateway's key, the colours.

import * as store from "./store.js";
import { retry } from "./stream.js";

const dialog = document.getElementById("settings");
const form = document.getElementById("settings-form");

/** Open the dialog, with a field in focus if one is named. */
export function openSettings(field) {
  if (dialog.open) return;
  for (const name of ["system", "key", ...store.NUMBERS]) form.elements[name].value = store.settings[name] ?? "";
  form.elements.theme.value = store.settings.theme;
  dialog.showModal();
  if (field) form.elements[field].focus();
}

function paintTheme(theme = store.settings.theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

document.getElementById("open-settings").addEventListener("click", () => openSettings());
dialog.addEventListener("close", () => {
  const changes = { system: form.elements.system.value.trim(), key: form.elements.key.value.trim() };
  for (const name of store.NUMBERS) {
    const input = form.elements[name];
    changes[name] = input.value !== "" && input.checkValidity() ? input.valueAsNumber : null;
  }
  const isNewKey = changes.key !== (store.settings.key ?? "");
  store.saveSettings({ ...changes, theme: form.elements.theme.value });
  paintTheme();
  if (isNewKey) retry();
});
form.addEventListener("change", (event) => {
  if (event.target.name === "theme") paintTheme(event.target.value);
});
