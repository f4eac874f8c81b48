// Light, dark, or as the system has it. Loaded in the head without `defer`, so that a saved choice holds before the
// first paint; the switch itself is in the page only for those who have JavaScript.
"use strict";
(() => {
  const THEMES = ["system", "light", "dark"];
  const root = document.documentElement;

  function saved() {
    try {
      const theme = localStorage.getItem("theme");
      return THEMES.includes(theme) ? theme : "system";
    } catch {
      return "system"; // storage is forbidden here: the choice lasts as long as the page
    }
  }

  function apply(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  function label(button, theme) {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    const said = (text) => text.replace("THEME", button.dataset[theme]).replace("NEXT", button.dataset[next]);
    button.dataset.current = theme;
    button.setAttribute("aria-label", said(button.dataset.label));
    button.title = said(button.dataset.title);
  }

  let current = saved();
  apply(current);

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector("[data-theme-switch]");
    if (!button) return;
    button.hidden = false;
    label(button, current);
    button.addEventListener("click", () => {
      current = THEMES[(THEMES.indexOf(current) + 1) % THEMES.length];
      apply(current);
      label(button, current);
      try {
        localStorage.setItem("theme", current);
      } catch {
        // not kept, see above
      }
    });
  });
})();
