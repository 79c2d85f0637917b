/** The settings that the server bakes in, as a global that the tests change. */
import type { Settings } from "../src/settings";

const baked: Settings = {
  site: "pk_x",
  api: "https://track.example.com/v1/bind",
  targets: ["sales@example.com", "info+shop@example.com"],
  domains: ["track.example.com"],
};

(globalThis as { SETTINGS?: Settings }).SETTINGS = baked;
