import { describe, expect, test } from "vitest";
import { linkSwapper, pattern, replacer } from "../src/swap";

const TARGETS = ["sales@example.com", "info+shop@example.com", "sales@example.co"];
const SHOWN: { [address: string]: string } = {
  "sales@example.com": "a1@track.example.com",
  "info+shop@example.com": "b2@track.example.com",
  "old7@track.example.com": "a1@track.example.com",
};

const addresses = pattern(TARGETS, ["track.example.com"]);
const swapped = (text: string) => text.replace(addresses, replacer((address) => SHOWN[address] || address));

describe("an address in a text", () => {
  test.each([
    ["sales@example.com", "a1@track.example.com"],
    ["Email:sales@example.com,", "Email:a1@track.example.com,"],
    ["(sales@example.com)", "(a1@track.example.com)"],
    ["Write to sales@example.com.", "Write to a1@track.example.com."],
    ["<sales@example.com>", "<a1@track.example.com>"],
    ['"sales@example.com"', '"a1@track.example.com"'],
    ["'sales@example.com'", "'a1@track.example.com'"],
    ["«sales@example.com»", "«a1@track.example.com»"],
    ["[sales@example.com]", "[a1@track.example.com]"],
    ["sales@example.com: our address", "a1@track.example.com: our address"],
    ["sales@example.com- our address", "a1@track.example.com- our address"],
    ["sales@example.com – our address", "a1@track.example.com – our address"],
    ["sales@example.com...", "a1@track.example.com..."],
    ["sales@example.com?", "a1@track.example.com?"],
    ["sales@example.com/info+shop@example.com", "a1@track.example.com/b2@track.example.com"],
    ["sales@example.com,sales@example.com", "a1@track.example.com,a1@track.example.com"],
    ["sales@example.com sales@example.com", "a1@track.example.com a1@track.example.com"],
    ["\u00a0sales@example.com\u00a0", "\u00a0a1@track.example.com\u00a0"],
    ["Почта:sales@example.com", "Почта:a1@track.example.com"],
    ["почта sales@example.com или", "почта a1@track.example.com или"],
    ["邮箱：sales@example.com。", "邮箱：a1@track.example.com。"],
    ["Sales@Example.com", "a1@track.example.com"],
    ["SALES@EXAMPLE.COM", "A1@TRACK.EXAMPLE.COM"],
    ["info+shop@example.com", "b2@track.example.com"],
    ["old7@track.example.com", "a1@track.example.com"],
    ["OLD7@Track.Example.com", "a1@track.example.com"],
  ])("is swapped: %s", (text, expected) => {
    expect(swapped(text)).toBe(expected);
  });

  test.each([
    "presales@example.com",
    "a.sales@example.com",
    "x-sales@example.com",
    "x_sales@example.com",
    "a+sales@example.com",
    "sales@example.com.au",
    "sales@example.community",
    "sales@example.com-foo",
    "sales@example.com_foo",
    "sales@example.com2",
    "sales@examplexcom",
    "info-shop@example.com",
    "infooshop@example.com",
    "почтаsales@example.com",
    "ésales@example.com",
    "e\u0301sales@example.com",
    "sales@example.comм",
    "sales@example.com.Мы",
    "new@sub.track.example.com",
    "new@track.example.com",
    "sales@",
    "@example.com",
  ])("is another address, or none, and stays: %s", (text) => {
    expect(swapped(text)).toBe(text);
  });

  test("keeps the case it has when nothing else is shown for it", () => {
    expect(swapped("Sales@Example.CO, New@Track.Example.com")).toBe("Sales@Example.CO, New@Track.Example.com");
  });

  test("is found in long texts without a trace of quadratic time", () => {
    // Quadratic time is minutes: Vitest gives a test five seconds.
    const text = "a.".repeat(200000) + "@ " + "sales@example.com".repeat(5000);
    expect(swapped(text) === text).toBe(true);
  });

  test("is none when there are no targets and no domains", () => {
    const none = pattern([], []);
    expect("sales@example.com foo@ ".replace(none, replacer(() => "x"))).toBe("sales@example.com foo@ ");
  });

  test("is a target although there are no domains", () => {
    expect("sales@example.com, x@y".replace(pattern(TARGETS, []), replacer(() => "x"))).toBe("x, x@y");
  });
});

describe("a link", () => {
  const swappedLink = linkSwapper(swapped);

  test.each([
    ["mailto:sales@example.com", "mailto:a1@track.example.com"],
    ["mailto:sales%40example.com", "mailto:a1@track.example.com"],
    ["MAILTO:Sales%40Example.com", "MAILTO:a1@track.example.com"],
    [" mailto:sales@example.com", " mailto:a1@track.example.com"],
    ["mailto:sales@example.com?", "mailto:a1@track.example.com?"],
    [
      "mailto:sales@example.com?subject=Hi%20sales@example.com&body=a%0Asales%40example.com",
      "mailto:a1@track.example.com?subject=Hi%20sales@example.com&body=a%0Asales%40example.com",
    ],
    [
      "mailto:x@y.z?cc=sales@example.com&BCC=sales%40example.com",
      "mailto:x@y.z?cc=a1@track.example.com&BCC=a1@track.example.com",
    ],
    ["mailto:?to=sales@example.com", "mailto:?to=a1@track.example.com"],
    [
      "mailto:?subject=x&to=sales@example.com,info+shop@example.com",
      "mailto:?subject=x&to=a1@track.example.com,b2@track.example.com",
    ],
    ["mailto:a%20b@x.y,sales@example.com", "mailto:a%20b@x.y,a1@track.example.com"],
    [
      "mailto:%22A%26B%22%20%3Csales@example.com%3E?subject=%",
      "mailto:%22A%26B%22%20%3Ca1@track.example.com%3E?subject=%",
    ],
    ["mailto:old7@track.example.com", "mailto:a1@track.example.com"],
  ])("has its recipients swapped: %s", (href, expected) => {
    expect(swappedLink(href)).toBe(expected);
  });

  test.each([
    "mailto:x@y.z?subject=sales@example.com",
    "mailto:x@y.z?body=To&amp;x=sales@example.com",
    "mailto:x@y.z?subject=who?to=sales@example.com",
    "mailto:x%@y.z?subject=%E0%A4%A",
    "mailto:presales%40example.com",
    "https://example.com/?to=sales@example.com",
    "https://example.com/mailto:sales@example.com",
    "tel:+491234",
    "#sales@example.com",
    "",
  ])("stays byte for byte: %s", (href) => {
    expect(swappedLink(href)).toBe(href);
  });
});
