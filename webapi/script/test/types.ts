/** What mailtrack.d.ts allows a page to write; the type checker is the test. */
import type { Answer } from "../mailtrack";

window.mailtrack = { enabled: false };
window.mailtrack = { q: [["add", "info@example.com"], ["consent", true], ["refresh"], (api) => api.refresh()] };
window.mailtrack = { params: { "1": "a", "5": null } };

export const wrong = [
  // @ts-expect-error: there is no such method
  () => (window.mailtrack = { q: [["nonsense"]] }),
  // @ts-expect-error: there are five parameters
  () => (window.mailtrack = { params: { "6": "a" } }),
];

export function use({ mailtrack }: Window) {
  if (!mailtrack || !("refresh" in mailtrack)) return; // not loaded yet
  mailtrack.on("bind", (answer: Answer) => answer.addresses["sales@example.com"]);
  mailtrack.on("mail", (mails) => mails.toFixed());
  mailtrack.on("click", (address) => address.toLowerCase());
  mailtrack.add("hr@example.com", "jobs@example.com");
  // @ts-expect-error: there is no such event
  mailtrack.on("paste", () => 0);
  // @ts-expect-error: the script says what it is
  mailtrack.visit = "1";
}
