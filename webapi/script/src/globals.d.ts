/** What browsers and analytics have and TypeScript's library does not know; each may be missing. */
export {};

declare global {
  interface Navigator {
    readonly globalPrivacyControl?: boolean;
  }
  interface Document {
    readonly prerendering?: boolean;
  }
  function gtag(command: "event", name: string): void;
  const dataLayer: { push(what: unknown): void };
  function ym(counter: number, method: "reachGoal", goal: string): void;
  const roistat: NonNullable<Window["roistat"]>;
}
