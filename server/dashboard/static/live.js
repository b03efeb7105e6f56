// Says whether the page is live, tells the charts when there is something new, and keeps the focus where it was.
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
  // What has the focus may be gone when the page has changed ("Pause" is, once it was pressed). The focus then goes to
  // what took its place in the group, or to the group itself; without this it would go to the top of the page.
  let group = null;
  document.addEventListener("htmx:before:swap", () => {
    // Two changes may overlap: what the first one took away still counts.
    group = document.activeElement?.closest("[data-keeps-focus]")?.id ?? group;
  });
  document.addEventListener("htmx:after:swap", () => {
    const found = group && document.getElementById(group);
    group = null;
    if (!found || document.activeElement !== document.body) return;
    const control = [...found.querySelectorAll("button, summary")].find((element) => element.checkVisibility());
    (control ?? found).focus({ preventScroll: true });
  });

  // A fault of the server is no new content: the page stays (noSwap), and says it where a control was pressed.
  function tellFault(event) {
    const place = event.detail?.ctx?.sourceElement?.closest?.("[data-keeps-focus]")?.querySelector("[role=alert]");
    if (place) place.textContent = "The server could not be asked, or could not do it: try again.";
  }
  document.addEventListener("htmx:error", tellFault);
  document.addEventListener("htmx:response:error", (event) => {
    if (event.detail?.ctx?.response?.status >= 500) tellFault(event);
  });

  // The server says "end" when nothing will change any more; every other close is a loss.
  document.addEventListener("htmx:sse:close", (event) => show(event.detail?.reason === "message" ? "ended" : "lost"));
})();
