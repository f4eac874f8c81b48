// Keys, the lease and the calm of the annotate page. Everything is delegated from the document, because the desk is
// replaced with every pair. Without this file the page still works: its buttons are plain submit buttons.
"use strict";
(() => {
  const QUIET_MS = 400; // a held key or a double click must not vote on a pair that nobody has read
  const RENEW_MS = 60_000;
  const FAILED = "Could not save. Your choice is still here; press the key again.";
  const STALE = "Nothing was saved: this page was open across a sign-in or sign-out. Reload it and answer again.";
  const REFUSED = "Nothing was saved: the server no longer takes answers from this page. Reload it to see why.";
  const SIGNED_OUT = "You are signed out. Reload the page to sign in again.";

  let busy = false; // one answer at a time
  let quietUntil = 0;
  let isAnswer = false; // the swap under way was asked for by a person, not by the poll of an empty queue

  const desk = () => document.getElementById("desk");
  const say = (id, text) => {
    const line = document.getElementById(id);
    if (line) line.textContent = text;
  };

  function sayReload(id, text) {
    say(id, text);
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "button", textContent: "Reload" });
    button.addEventListener("click", () => location.reload());
    document.getElementById(id)?.append(" ", button);
  }

  // Keys

  const isTyping = (element) => element.closest?.("input:not([type=hidden]), textarea, select, [contenteditable]");

  function nameOf(event) {
    // Digits by their place on the keyboard, so that they work on every layout; letters by what they say.
    if (/^(Digit|Numpad)\d$/.test(event.code)) return event.code.replace("Numpad", "Digit");
    return event.key.length === 1 ? event.key.toLowerCase() : event.key;
  }

  function isForUs(event) {
    if (event.repeat || event.isComposing || event.altKey || event.metaKey || isTyping(event.target)) return false;
    return !event.ctrlKey || (event.key.toLowerCase() === "z" && !event.shiftKey);
  }

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || !isForUs(event)) return;
    const name = event.ctrlKey ? "u" : nameOf(event);
    const panel = document.querySelector(`[popover][data-key="${CSS.escape(name)}"]`);
    if (panel) {
      event.preventDefault();
      panel.togglePopover();
      return;
    }
    // Arrows scroll a wide table that has the focus; nothing votes behind an open panel.
    const scrolls = name.startsWith("Arrow") && event.target.closest?.("[tabindex='0']");
    if (scrolls || document.querySelector("[popover]:popover-open")) return;
    const button = desk()?.querySelector(`button[data-keys~="${CSS.escape(name)}"]:not(:disabled)`);
    if (!button) return;
    event.preventDefault();
    if (!busy && performance.now() >= quietUntil) button.click();
  });

  // Answers

  document.addEventListener("htmx:beforeRequest", (event) => {
    const source = event.detail.elt;
    if (source === desk()) {
      // The poll of an empty queue. Behind another tab it would lease a pair that nobody sees.
      if (document.hidden || busy) event.preventDefault();
      return;
    }
    if (!source.closest("#desk")) return;
    if (busy || performance.now() < quietUntil) {
      event.preventDefault();
      return;
    }
    busy = isAnswer = true;
    say("desk-alert", "");
    const choice = event.detail.requestConfig.formData.get("choice");
    if (choice) desk().dataset.chosen = choice;
  });

  function failed(event) {
    if (!event.detail.elt.closest?.("#desk")) return;
    const wasAnswer = busy;
    busy = isAnswer = false;
    if (!wasAnswer) return;
    // What the server refuses it will refuse again: the token against forgery is older than the sign-in, for example.
    const status = event.detail.xhr?.status ?? 0;
    if (status >= 400 && status < 500) sayReload("desk-alert", status === 403 ? STALE : REFUSED);
    else say("desk-alert", FAILED);
  }
  for (const name of ["htmx:sendError", "htmx:responseError", "htmx:timeout", "htmx:sendAbort", "htmx:swapError"]) {
    document.addEventListener(name, failed);
  }

  // A new desk

  let stateBefore = "";
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target.id === "desk") stateBefore = event.detail.target.dataset.state;
  });

  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.target.id !== "desk" && !event.target.contains(desk())) return;
    const isNew = isAnswer || desk().dataset.state !== stateBefore;
    busy = isAnswer = false;
    prepare();
    if (isNew) welcome();
  });

  function welcome() {
    quietUntil = performance.now() + QUIET_MS;
    const top = desk().getBoundingClientRect().top + window.scrollY;
    if (window.scrollY > top) window.scrollTo({ top, behavior: "instant" });
    document.getElementById("desk-title").focus({ preventScroll: true });
    say("announcer", desk().dataset.says);
    setTimeout(ready, QUIET_MS + 5);
  }

  function prepare() {
    // A long conversation opens at its last turn; what scrolls sideways can be reached without a mouse.
    const last = desk().querySelector(".turn.is-last");
    if (last?.previousElementSibling) last.parentElement.scrollTop = last.offsetTop - last.parentElement.offsetTop;
    for (const wide of desk().querySelectorAll("pre, table")) {
      if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
    }
  }

  function ready() {
    // Names the pair that takes keys now, for whoever drives the page; a newer desk has a timer of its own.
    if (performance.now() >= quietUntil) document.documentElement.dataset.ready = desk().dataset.token ?? "";
  }

  // The lease

  async function renew() {
    const { renewUrl, token } = desk()?.dataset ?? {};
    if (!token || document.hidden || busy) return;
    const headers = JSON.parse(document.body.getAttribute("hx-headers"));
    try {
      const response = await fetch(renewUrl, { method: "POST", headers, body: new URLSearchParams({ token }) });
      const text = await response.text();
      if (desk().dataset.token === token) sayStanding(response, text);
    } catch {
      // Offline for a moment: the lease is longer than a minute, and the next try is near.
    }
  }

  function sayStanding({ status, redirected }, text) {
    if (redirected) sayReload("desk-lease", SIGNED_OUT);
    else if (status === 403) sayReload("desk-lease", STALE);
    else if (status === 409 || status === 410) say("desk-lease", text);
    else if (status === 204) say("desk-lease", "");
  }

  setInterval(renew, RENEW_MS);
  document.addEventListener("visibilitychange", renew);

  if (desk()) {
    prepare();
    ready();
  }
})();
