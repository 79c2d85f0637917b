/** The wiring: the API for the page, what starts us, and which events of the browser concern us. */
import type { QueueEntry } from "../mailtrack";
import { api, consent, refused } from "./api";
import { attempt } from "./attempt";
import { check, refresh, soonest } from "./bind";
import { listen, tell } from "./events";
import { addTargets, lapsed, lastShown, swapped } from "./lease";
import { add, kept, watch } from "./page";
import { forget } from "./visit";

function setConsent(given: boolean) {
  consent.given = given;
  if (!given) forget();
  refresh();
}

/** Runs what a page has queued. */
function push(...entries: QueueEntry[]) {
  for (const entry of entries)
    attempt(() => {
      if (typeof entry === "function") return entry(api);
      const [method, ...values] = entry;
      (api[method] as (...values: unknown[]) => void)(...values);
    });
}

/** Hooks still to be called; a page may set them below our tag. */
let hooks: Array<"onMailtrackLoaded" | "onRoistatModuleLoaded"> = ["onMailtrackLoaded"];

function callHooks() {
  hooks = hooks.filter((name) => {
    const hook = window[name];
    if (hook) attempt(hook);
    return !hook;
  });
}

/**
 * The reference's object and hook. With its own counter announced, that one makes the object and calls the hook; unless
 * the page is complete without it, because something blocks it: what the page's owner says in the hook still holds.
 */
let awaited = true;
function standIn() {
  const state = document.readyState;
  // Its tag may stand below ours.
  if (awaited && state !== "loading" && (!window.roistatProjectId || (!window.roistat && state === "complete"))) {
    awaited = false;
    window.roistat = window.roistat || {};
    hooks.push("onRoistatModuleLoaded");
  }
  // Fails, as an attempt, as long as that counter is not there.
  roistat.emailtracking = roistat.emailtracking || { enabled: true, refresh };
}

/** Before a click or copy is carried out, nothing stale may be left on the page; then those who want to are told. */
function act(event: Event) {
  const target = event.composedPath()[0] as Element;
  const { type } = event;
  let text = type === "copy" && !kept(target) ? String(getSelection()) : "";
  const stale = text && lapsed();
  check(event.isTrusted);
  if (type === "click") text = target.closest<HTMLAnchorElement>('[href*="mailto:" i]')!.href;
  text = swapped(text);
  if (stale) {
    // The page's text has changed under the selection, which is lost by that: the clipboard is ours to fill.
    (event as ClipboardEvent).clipboardData!.setData("text/plain", text);
    event.preventDefault();
  }
  if (lastShown) tell(type as "click" | "copy", lastShown, "mailtrack_" + type);
}

/** The page begins, is complete, hidden, or seen again. */
function carryOn() {
  attempt(standIn);
  callHooks();
  // Until something is bound: what the tab remembers may have had to wait for the reference's hook.
  if (soonest) check();
  else refresh();
}

function listenTo(types: string, listener: (event: any) => void) {
  for (const type of types.split(" "))
    addEventListener(type, (event) => attempt(() => listener(event)), {
      capture: true,
      passive: type === "wheel", // else Safari would wait for us before it scrolls
    });
}

// A second tag on the page finds the first one's API, and leaves it alone.
if (!api.refresh) {
  const queue = (api.q || []) as QueueEntry[];
  Object.assign(api, {
    enabled: api.enabled !== false,
    refresh,
    consent: setConsent,
    on: listen,
    add: (...addresses: string[]) => {
      add(...addresses);
      check();
    },
    q: { push },
  });
  addTargets(SETTINGS.targets);
  watch(() => check());
  push(...queue);
  if (refused) forget();
  carryOn();
  listenTo("DOMContentLoaded visibilitychange pageshow", carryOn);
  // Opened after it was only prerendered, or back from the browser's cache of pages; else a pageshow says false.
  listenTo("prerenderingchange pageshow", (event) => event.persisted !== false && refresh());
  // Most of them only show that there is a person (touching is a pointerdown); nothing stale is left then either.
  listenTo("pointerdown click copy keydown wheel", act);
  // Pages scroll by themselves, too; and a browser says mousemove, without a movement, when something comes to lie under
  // a pointer that rests, as when a page is loaded.
  listenTo("scroll mousemove", (event) => check(event.isTrusted && (event.movementX || event.movementY)));
}
