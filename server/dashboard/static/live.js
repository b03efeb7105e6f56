// Says whether the page is live, and tells the charts when there is something new.
// The server sends named events ("changed"); the page itself is fetched again by htmx.
"use strict";

(() => {
  const texts = {
    connecting: "connecting", live: "live", lost: "connection lost, trying again", ended: "final",
  };

  function show(state) {
    const element = document.getElementById("live");
    if (!element || element.dataset.live === state) return;
    element.dataset.live = state;
    element.querySelector("[data-live-text]").textContent = texts[state];
  }

  document.addEventListener("htmx:sse:after:connection", (event) => {
    const status = event.detail?.connection?.status;
    show(status === undefined || status === 200 ? "live" : "lost");
  });
  document.addEventListener("htmx:sse:error", () => show("lost"));
  // The server says "end" when nothing will change any more; every other close is a loss.
  document.addEventListener("htmx:sse:close", (event) => show(event.detail?.reason === "message" ? "ended" : "lost"));
})();
