// Replaces the parts of the overview that change. The server renders them; this file knows no numbers.
"use strict";
const place = document.querySelector("[data-live]");
if (place && window.EventSource) {
  const box = document.getElementById("live-state");
  const text = document.createElement("span");
  const button = document.createElement("button");
  text.setAttribute("role", "status");
  button.type = "button";
  box.append(text, button);

  const shown = new Map();
  let source = null;

  const say = (words, on) => {
    text.className = on ? "on" : "";
    if (text.textContent !== words) text.textContent = words;
  };
  // A part that has the focus or the selection stays as it is.
  const inUse = (part) => {
    const marked = window.getSelection();
    return part.contains(document.activeElement) ||
      (marked && !marked.isCollapsed && part.contains(marked.anchorNode));
  };
  const show = (event) => {
    say("Live", true);
    for (const { id, html } of JSON.parse(event.data).fragments) {
      const part = document.getElementById(id);
      if (!part || shown.get(id) === html || inUse(part)) continue;
      const left = [...part.querySelectorAll(".scroll")].map((table) => table.scrollLeft);
      part.innerHTML = html;
      part.querySelectorAll(".scroll").forEach((table, n) => { table.scrollLeft = left[n] || 0; });
      shown.set(id, html);
    }
  };
  const start = () => {
    source = new EventSource(place.dataset.live);
    source.onmessage = show;
    source.onerror = () => {
      // After a refusal, unlike a broken connection, the browser does not try again.
      const given_up = source.readyState === EventSource.CLOSED;
      say(given_up ? "Not live: reload the page" : "Reconnecting", false);
    };
    button.textContent = "Pause";
    say("Connecting", false);
  };
  const stop = () => {
    source.close();
    source = null;
    button.textContent = "Resume";
    say("Paused", false);
  };
  button.addEventListener("click", () => (source ? stop() : start()));
  // A page in the background needs no numbers.
  let resume = false;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      resume = source !== null;
      if (resume) stop();
    } else if (resume && !source) {
      start();
    }
  });
  start();
}
