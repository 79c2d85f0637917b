/** What the server bakes into the script for one site. A key that is off is absent. */
export interface Settings {
  /** Public key of the site. */
  site: string;
  /** Where to bind. */
  api: string;
  /** The real addresses to replace. */
  targets: string[];
  /** Any address at one of these may be a substitute, put into the page by a cache or by our server. */
  domains: string[];
  /** Name of the cookie in which another counter keeps its visit number. */
  cookie?: string;
  /** Name of the cookie in which another counter keeps its marker. */
  marker?: string;
  /** Domain attribute of our cookies. */
  domain?: string;
  /** Binds carry the cookies of the API's host. */
  credentials?: "include";
  /** Global Privacy Control counts as a refusal. */
  gpc?: 1;
  /** Nothing is bound or kept before the first sign of a person. */
  lazy?: 1;
  /** Nothing happens before mailtrack.consent(true). */
  consent?: 1;
  /** Events go to Google's tag as well. */
  google?: 1;
  /** Events go to this Metrica counter as well. */
  metrica?: number;
}

declare global {
  /** The argument of the built file's one function: build.mjs. */
  const SETTINGS: Settings;
}
