// Replaces the parts of a page that change: of the overview by events, of a build in progress by reading its page again.
// The server renders them; this file knows no numbers.
"use strict";
const place = document.querySelector("[data-live], [data-reread]");
if (place) {
  const box = document.getElementById("live-state");
  const text = document.createElement("span");
  const button = document.createElement("button");
  text.setAttribute("role", "status");
  button.type = "button";
  box.append(text, button);

  const shown = new Map();
  // Ends the updates; null while there are none.
  let end = null;

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
  const show = (fragments) => {
    say("Live", true);
    for (const { id, html } of fragments) {
      const part = document.getElementById(id);
      if (!part || shown.get(id) === html || inUse(part)) continue;
      const left = [...part.querySelectorAll(".scroll")].map((table) => table.scrollLeft);
      part.innerHTML = html;
      part.querySelectorAll(".scroll").forEach((table, n) => { table.scrollLeft = left[n] || 0; });
      shown.set(id, html);
    }
  };
  const listen = () => {
    const source = new EventSource(place.dataset.live);
    source.onmessage = (event) => show(JSON.parse(event.data).fragments);
    source.onerror = () => {
      // After a refusal, unlike a broken connection, the browser does not try again.
      const given_up = source.readyState === EventSource.CLOSED;
      say(given_up ? "Not live: reload the page" : "Reconnecting", false);
    };
    say("Connecting", false);
    return () => source.close();
  };

  const parts = (page) => [...page.querySelectorAll("[data-reread] > [id]")].map(
    (part) => ({ id: part.id, html: part.innerHTML }));
  // The milliseconds between two requests, as the last answer says. A page that no longer changes has none.
  let interval = Number(place.dataset.reread);
  let last = Date.now();
  const reread = () => {
    const ended = new AbortController();
    const wait = () => setTimeout(read, Math.max(0, last + interval - Date.now()));
    const read = async () => {
      last = Date.now();
      try {
        const response = await fetch(location.href, { signal: ended.signal });
        if (response.status >= 500) throw new Error(response.statusText);
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        show(parts(page));
        const next = page.querySelector("[data-reread]");
        if (!next) {
          stop();
          say("Not live: reload the page", false);
          return;
        }
        interval = Number(next.dataset.reread);
      } catch {
        if (ended.signal.aborted) return;
        say("Reconnecting", false);
      }
      timer = wait();
    };
    let timer = wait();
    say("Live", true);
    return () => {
      clearTimeout(timer);
      ended.abort();
    };
  };
  const start = () => {
    end = place.dataset.live ? listen() : reread();
    button.textContent = "Pause";
  };
  const stop = () => {
    end();
    end = null;
    button.textContent = "Resume";
    say("Paused", false);
  };
  button.addEventListener("click", () => (end ? stop() : start()));
  // A page in the background needs no numbers.
  let resume = document.hidden;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      resume = end !== null;
      if (resume) stop();
    } else if (resume && !end) {
      start();
    }
  });
  for (const { id, html } of parts(document)) shown.set(id, html);
  if (!document.hidden) start();
}
