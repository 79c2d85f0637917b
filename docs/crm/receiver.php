<?php
/* Receives letters from visit-relay: verifies each, makes one deal of it, answers the deal. PHP 8.1, no packages.
 *
 *     RELAY_WEBHOOK_SECRET=whsec_… RELAY_WEBHOOK_DIR=/var/lib/letters php -S 127.0.0.1:8080 receiver.php
 *
 * or behind php-fpm with both as fastcgi_param or env[…]. While the secret is being exchanged, RELAY_WEBHOOK_SECRET
 * holds both, a space between them. Every letter becomes a file of one JSON line in RELAY_WEBHOOK_DIR, which is outside
 * of what the web server shows, named by its webhook-id. */
declare(strict_types=1);

const LIMIT = 8_000_000;  // octets of a body; the largest has 1 MB of text, more in JSON's escapes
const TOLERANCE = 300;    // seconds that the sender's clock and ours may differ

ini_set('display_errors', '0');  // with it, PHP would answer 200 to what went wrong
set_error_handler(fn (int $level, string $text) => throw new ErrorException($text), E_WARNING | E_NOTICE);
set_exception_handler(function (Throwable $error): never {
    error_log("{$error->getMessage()} (line {$error->getLine()})");
    answer(500, ['error' => 'try again later']);
});
umask(0077);  // letters are nobody else's business

/** Here the CRM makes its deal. Subject, text and names were written by strangers: escape them where they show. */
function new_deal(array $letter): array
{
    $number = bin2hex(random_bytes(16));
    return ['deal_id' => $number, 'deal_url' => "https://crm.example.com/deals/$number"];
}

function answer(int $status, array $answer): never
{
    http_response_code($status);
    header('Content-Type: application/json');
    exit(json_encode($answer));
}

function verify(array $keys, string $event, string $timestamp, string $signatures, string $body): void
{
    if (!preg_match('/^[A-Za-z0-9_.-]{1,200}$/D', $event)) {  // becomes a file's name
        answer(401, ['error' => 'webhook-id is missing or malformed']);
    }
    if (!preg_match('/^[0-9]{1,12}$/D', $timestamp) || abs(time() - (int) $timestamp) > TOLERANCE) {
        answer(401, ['error' => 'webhook-timestamp is missing or more than 5 minutes from now']);
    }
    foreach ($keys as $key) {
        $good = 'v1,' . base64_encode(hash_hmac('sha256', "$event.$timestamp.$body", $key, true));
        foreach (explode(' ', $signatures) as $given) {
            if (hash_equals($good, $given)) {
                return;
            }
        }
    }
    answer(401, ['error' => 'webhook-signature is missing or not made with our secret']);
}

$secrets = preg_split('/\s+/', (string) getenv('RELAY_WEBHOOK_SECRET'), -1, PREG_SPLIT_NO_EMPTY);
$keys = array_map(fn ($secret) => (string) base64_decode(preg_replace('/^whsec_/', '', $secret), true), $secrets);
$letters = (string) getenv('RELAY_WEBHOOK_DIR');
if (!$keys || min(array_map('strlen', $keys)) < 24 || !str_starts_with($letters, '/') || !is_dir($letters)) {
    throw new Exception('RELAY_WEBHOOK_SECRET must be whsec_…, RELAY_WEBHOOK_DIR the absolute path of a directory');
}
$_SERVER['REQUEST_METHOD'] === 'POST' || answer(405, ['error' => 'POST is expected']);
$body = file_get_contents('php://input', length: LIMIT + 1);
if (strlen($body) > LIMIT || (int) ($_SERVER['CONTENT_LENGTH'] ?? 0) > LIMIT) {
    answer(413, ['error' => 'the body has more than ' . LIMIT . ' octets']);
}
$event = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
verify($keys, $event, $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '', $body);
$letter = json_decode($body, true);
is_array($letter) && !array_is_list($letter) || answer(400, ['error' => 'not a JSON object']);

flock($lock = fopen("$letters/lock", 'c'), LOCK_EX);  // one at a time, until this request ends
if (!file_exists("$letters/$event.json")) {           // else it is a retry or a replay, and gets the same answer
    $entry = ['webhook_id' => $event, 'answer' => new_deal($letter), 'letter' => $letter];
    $line = json_encode($entry, JSON_THROW_ON_ERROR);
    $new = fopen("$letters/$event.json.new", 'w');
    fwrite($new, "$line\n") === strlen($line) + 1 && fsync($new) || throw new Exception('the letter is not stored');
    rename("$letters/$event.json.new", "$letters/$event.json");  // what was answered with 200 is not sent again
}
answer(200, json_decode(file_get_contents("$letters/$event.json"), true)['answer']);
