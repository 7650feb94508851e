// Before anything is painted, so that no light page flashes up in the dark.
"use strict";
try {
  const theme = JSON.parse(localStorage.getItem("p2pinfer.settings") || "{}").theme;
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be off; the system's colours are fine.
}
