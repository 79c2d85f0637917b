/** What the page, Google's tag and Metrica are told. */
import type { Events } from "../mailtrack";
import { attempt } from "./attempt";

type Listener = (what: any) => void;
const listeners: { [name: string]: Listener[] } = {};

export function listen(name: string, listener: Listener) {
  listeners[name] = [...(listeners[name] || []), listener];
}

/** `goal` is the name of the event in analytics; without one they are not told. */
export function tell<Name extends keyof Events>(name: Name, what: Events[Name], goal?: string) {
  // Where there is no tag of Google's or Metrica's there is no such name: the attempt fails, which is all right.
  [
    ...(listeners[name] || []),
    () => goal && SETTINGS.google && ("gtag" in window ? gtag("event", goal) : dataLayer.push({ event: goal })),
    () => goal && SETTINGS.metrica && ym(SETTINGS.metrica, "reachGoal", goal),
  ].forEach((listener) => attempt(() => listener(what)));
}
