/* Receives letters from visit-relay: verifies each, makes one deal of it, answers the deal. Node.js 18, no packages.
 *
 *     RELAY_WEBHOOK_SECRET=whsec_… RELAY_WEBHOOK_DIR=/var/lib/letters node receiver.mjs 8080
 *
 * While the secret is being exchanged, RELAY_WEBHOOK_SECRET holds both, a space between them. One process, behind a web
 * server that has TLS. Every letter becomes a file of one JSON line in RELAY_WEBHOOK_DIR, named by its webhook-id. */
import { createHmac, randomUUID, timingSafeEqual } from "node:crypto";
import { existsSync } from "node:fs";
import { open, readFile, rename } from "node:fs/promises";
import { createServer } from "node:http";
import { isAbsolute } from "node:path";

const LIMIT = 8_000_000; // octets of a body; the largest has 1 MB of text, more in JSON's escapes
const TOLERANCE = 300; // seconds that the sender's clock and ours may differ
const letters = process.env.RELAY_WEBHOOK_DIR ?? "";
const secrets = (process.env.RELAY_WEBHOOK_SECRET ?? "").split(/\s+/).filter(Boolean);
const keys = secrets.map((secret) => Buffer.from(secret.replace(/^whsec_/, ""), "base64"));
const underWay = new Map(); // promises of answers, by webhook-id

/** Here the CRM makes its deal. Subject, text and names were written by strangers: escape them where they show. */
async function newDeal(letter) {
  const number = randomUUID();
  return { deal_id: number, deal_url: `https://crm.example.com/deals/${number}` };
}

/** Why this was not sent by whoever has our secret, just now; null if it was. */
function doubt(event, timestamp, signatures, body) {
  if (!/^[A-Za-z0-9_.-]{1,200}$/.test(event)) return "webhook-id is missing or malformed"; // becomes a file's name
  if (!/^[0-9]{1,12}$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE)
    return "webhook-timestamp is missing or more than 5 minutes from now";
  const good = keys.map((key) => createHmac("sha256", key).update(`${event}.${timestamp}.`).update(body).digest());
  for (const [version, value] of signatures.split(" ").map((signature) => signature.split(","))) {
    const given = Buffer.from(value ?? "", "base64");
    if (version === "v1" && good.some((one) => one.length === given.length && timingSafeEqual(one, given))) return null;
  }
  return "webhook-signature is missing or not made with our secret";
}

/** The answer to this event: that of the first time, if it is a retry or a replay. */
async function settle(event, letter) {
  const file = `${letters}/${event}.json`;
  if (!existsSync(file)) {
    const line = JSON.stringify({ webhook_id: event, answer: await newDeal(letter), letter });
    const stored = await open(`${file}.new`, "w");
    await stored.writeFile(`${line}\n`).then(() => stored.sync()).finally(() => stored.close());
    await rename(`${file}.new`, file); // what was answered with 200 is not sent again
  }
  return JSON.parse(await readFile(file, "utf8")).answer;
}

/** Status and answer. */
async function receive(request) {
  const { "content-length": length, "webhook-id": event = "", "webhook-timestamp": timestamp = "" } = request.headers;
  if (request.method !== "POST") return [405, { error: "POST is expected" }];
  if (!(Number(length) <= LIMIT)) return [413, { error: `Content-Length must be there and at most ${LIMIT}` }];
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  const reason = doubt(event, timestamp, request.headers["webhook-signature"] ?? "", body);
  if (reason) return [401, { error: reason }];
  let letter;
  try { letter = JSON.parse(body); } catch {} // refused with everything else that is no object
  if (!letter || typeof letter !== "object" || Array.isArray(letter)) return [400, { error: "not a JSON object" }];
  if (!underWay.has(event)) underWay.set(event, settle(event, letter).finally(() => underWay.delete(event)));
  return [200, await underWay.get(event)];
}

if (!keys.length || keys.some((key) => key.length < 24) || !isAbsolute(letters) || !existsSync(letters))
  throw new Error("RELAY_WEBHOOK_SECRET must be whsec_…, RELAY_WEBHOOK_DIR the absolute path of a directory");
process.umask(0o077); // letters are nobody else's business
const server = createServer({ requestTimeout: 15_000 }, async (request, response) => {
  const [status, answer] = await receive(request).catch((error) => {
    console.error(error);
    return [500, { error: "try again later" }];
  });
  response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(answer));
});
server.listen(Number(process.argv[2]), "127.0.0.1");
server.on("listening", () => console.log(`listening on http://127.0.0.1:${server.address().port}`));
