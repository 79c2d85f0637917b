import { beforeEach, describe, expect, test, vi } from "vitest";
import { api } from "../src/api";
import type { Settings } from "../src/settings";
import { cookie, forget, keep, keptMapping, known, leads, renumbered } from "../src/visit";

const settings = SETTINGS as { -readonly [Key in keyof Settings]: Settings[Key] };
const MAPPING = { visit: "12", shown: { "sales@example.com": "a1@track.example.com" }, end: 5000, mails: 2 };

let jar: string;
let written: string[];

beforeEach(() => {
  jar = "";
  written = [];
  vi.spyOn(document, "cookie", "get").mockImplementation(() => jar);
  vi.spyOn(document, "cookie", "set").mockImplementation((text) => void written.push(text));
  vi.stubGlobal("location", { protocol: "https:" });
  vi.stubGlobal("sessionStorage", {});
  api.visit = null;
  for (const key of ["cookie", "credentials", "domain", "marker"] as const) delete settings[key];
  return () => {
    vi.restoreAllMocks();
    vi.unstubAllGlobals();
  };
});

describe("a cookie", () => {
  test.each([
    ["a=1", "1"],
    ["x=2; a=1; y=3", "1"],
    ["xa=2; a=1", "1"],
    ["a=1x", undefined],
    ["ba=1", undefined],
    ["x=a=1", undefined],
    ["a=123456789012345678901", undefined],
    ["a=", undefined],
    ["", undefined],
  ])("is read whole or not at all: %s", (text, expected) => {
    jar = text;
    expect(cookie("a", "(\\d{1,20})")).toBe(expected);
  });

  test("without a name is none", () => {
    jar = "undefined=1";
    expect(cookie(undefined, "(\\d+)")).toBe(undefined);
  });
});

describe("what a bind says of the browser", () => {
  const said = () => JSON.parse(JSON.stringify(known()));

  test("is nothing at first", () => {
    expect(said()).toEqual({ ours: true });
  });

  test("is our own visit and first visit", () => {
    jar = "mailtrack_visit=12; mailtrack_first=3; roistat_visit=99";
    expect(said()).toEqual({ visit: "12", ours: true, first_visit: "3" });
  });

  test("is another counter's visit rather than ours", () => {
    settings.cookie = "roistat_visit";
    jar = "mailtrack_visit=12; roistat_visit=99";
    expect(said()).toEqual({ visit: "99", ours: false });
    jar = "roistat_visit=99";
    jar = "mailtrack_visit=12; roistat_visit=abc";
    expect(said()).toEqual({ visit: "12", ours: true });
  });

  test.each([
    ["_ga=GA1.2.1234567890.1600000000", "1234567890.1600000000"],
    ["_ga=GA1.1.12.34", "12.34"],
    ["_ga=GA1.3-2.12.34", "12.34"],
    ["_ga=amp-xyz", undefined],
  ])("has Google's client id: %s", (text, expected) => {
    jar = text;
    expect(said().google_client_id).toBe(expected);
  });

  test("has Metrica's client id and the marker of another counter", () => {
    settings.marker = "roistat_marker";
    jar = "_ym_uid=1600000000123; roistat_marker=google_cpc%20x";
    expect(said()).toMatchObject({ ym_uid: "1600000000123", marker: "google_cpc%20x" });
  });
});

test("another counter's number may be another than the last bind said", () => {
  settings.cookie = "roistat_visit";
  known();
  for (const text of ["roistat_visit=99", "roistat_visit=100", ""]) {
    jar = text;
    expect(renumbered()).toBe(true);
    known();
    expect(renumbered()).toBe(false);
  }
});

test("a later visit of another tab shows in the cookie, and so does that there is none any more", () => {
  expect(leads()).toBe(true);
  api.visit = "12";
  for (const [text, expected] of [
    ["mailtrack_visit=12", true],
    ["mailtrack_visit=13", false],
    ["", false],
  ] as const) {
    jar = text;
    expect(leads()).toBe(expected);
  }
});

describe("what is kept", () => {
  test("of a visit that goes on leaves the cookie alone where another tab has begun another", () => {
    jar = "mailtrack_visit=13";
    keep(MAPPING, "3", true);
    expect(written).toEqual([]);
    jar = "mailtrack_visit=12";
    keep(MAPPING, "3", true);
    expect(written).toHaveLength(2);
    expect(JSON.parse(sessionStorage.mailtrack_visit)).toEqual(MAPPING);
  });

  test("are two cookies and the mapping of the session", () => {
    keep(MAPPING, "3");
    expect(written).toEqual([
      "mailtrack_visit=12; path=/; max-age=1209600; SameSite=Lax; Secure",
      "mailtrack_first=3; path=/; max-age=31536000; SameSite=Lax; Secure",
    ]);
    jar = "mailtrack_visit=12";
    expect(keptMapping()).toEqual(MAPPING);
  });

  test("has a domain if there is one, and is not Secure without TLS", () => {
    settings.domain = "example.com";
    const bare = "mailtrack_visit=12; path=/; max-age=1209600; SameSite=Lax";
    for (const hostname of ["example.com", "www.example.com"]) {
      vi.stubGlobal("location", { protocol: "http:", hostname });
      keep(MAPPING, null);
      expect(written.pop()).toBe(`${bare}; Domain=example.com`);
    }
  });

  test("has no domain on a page of the site that lies elsewhere", () => {
    settings.domain = "example.com";
    for (const hostname of ["badexample.com", "example.com.au", "example.org"]) {
      vi.stubGlobal("location", { protocol: "https:", hostname });
      keep(MAPPING, null);
      expect(written.pop()).toBe("mailtrack_visit=12; path=/; max-age=1209600; SameSite=Lax; Secure");
    }
  });

  describe("where the server sets the cookies", () => {
    beforeEach(() => {
      settings.credentials = "include";
      settings.domain = "example.com";
      vi.stubGlobal("location", { protocol: "https:", hostname: "www.example.com" });
    });

    test("leaves alone what its answer has set", () => {
      jar = "mailtrack_visit=12; mailtrack_first=3";
      for (const renewed of [false, true]) keep(MAPPING, "3", renewed);
      expect(written).toEqual([]);
      expect(keptMapping()).toEqual(MAPPING);
    });

    test("is written on pages that lie elsewhere, so that it lives on with the visit", () => {
      jar = "mailtrack_visit=12; mailtrack_first=3";
      vi.stubGlobal("location", { protocol: "https:", hostname: "example.org" });
      keep(MAPPING, "3", true);
      expect(written).toContain("mailtrack_visit=12; path=/; max-age=1209600; SameSite=Lax; Secure");
      expect(written).toContain("mailtrack_first=3; path=/; max-age=31536000; SameSite=Lax; Secure");
    });

    test.each(["", "mailtrack_visit=11"])("is written over what says another visit than the answer: %s", (text) => {
      jar = text; // an answer without credentials has set nothing; or one of this host alone hides what it has set
      keep(MAPPING, null);
      expect(written).toEqual([
        "mailtrack_visit=; path=/; max-age=0; SameSite=Lax; Secure",
        "mailtrack_visit=12; path=/; max-age=1209600; SameSite=Lax; Secure; Domain=example.com",
      ]);
    });

    test("is not written of a visit that goes on beside a later one", () => {
      jar = "mailtrack_visit=13";
      keep(MAPPING, "3", true);
      expect(written).toEqual([]);
    });
  });

  test("is of no use for another visit", () => {
    keep(MAPPING, null);
    jar = "mailtrack_visit=13";
    expect(keptMapping()).toBe(undefined);
    settings.cookie = "roistat_visit";
    jar = "mailtrack_visit=12; roistat_visit=99";
    expect(keptMapping()).toBe(undefined);
  });

  test.each(["", "{", "null", "[]", '"12"'])("may be garbage: %s", (text) => {
    jar = "mailtrack_visit=12";
    sessionStorage.mailtrack_visit = text;
    expect(keptMapping()).toBe(undefined);
  });

  test("are only the cookies where storage is blocked", () => {
    vi.stubGlobal("sessionStorage", undefined);
    keep(MAPPING, null);
    expect(written).toHaveLength(1);
    expect(keptMapping()).toBe(undefined);
    forget();
  });

  test("is forgotten, with the domain and without", () => {
    vi.stubGlobal("location", { protocol: "https:", hostname: "www.example.com" });
    settings.domain = "example.com";
    keep(MAPPING, "3");
    written = [];
    forget();
    expect(sessionStorage).toEqual({});
    const gone = "=; path=/; max-age=0; SameSite=Lax; Secure";
    expect(written).toEqual([
      `mailtrack_visit${gone}`,
      `mailtrack_visit${gone}; Domain=example.com`,
      `mailtrack_first${gone}`,
      `mailtrack_first${gone}; Domain=example.com`,
    ]);
  });
});
