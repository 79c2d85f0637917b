/** Builds mailtrack.js from src/: node build.mjs [FILE] */
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { build } from "esbuild";
import { minify } from "terser";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const target = process.argv[2] || `${HERE}mailtrack.js`;

// esbuild bundles and lowers; terser, which folds functions that are used once into their place, saves another 4 %.
const bundle = await build({
  absWorkingDir: HERE,
  entryPoints: ["src/mailtrack.ts"],
  bundle: true,
  minifySyntax: true,
  format: "esm",
  target: "es2020",
  charset: "ascii",
  write: false,
});
const { code } = await minify(bundle.outputFiles[0].text, {
  ecma: 2020,
  module: true,
  compress: {
    passes: 4,
    inline: 1,
    hoist_funs: true,
    unsafe: true,
    unsafe_arrows: true,
    pure_getters: true,
    keep_fargs: false,
  },
  mangle: { reserved: ["SETTINGS", "$"] },
  format: { ascii_only: true, semicolons: true },
});
// One function, called with the site's settings, which stand last: the server puts them in the place of
// __MAILTRACK__. Within, they are $.
const body = code.replace(/\bSETTINGS\b/g, "$$");
const text = `/*! visit-relay */\n($=>{${body}})(__MAILTRACK__);\n`;
writeFileSync(target, text);

const bytes = Buffer.from(text);
const sizes = [bytes.length, gzipSync(bytes, { level: 9 }).length, brotliCompressSync(bytes).length];
console.log(`mailtrack.js: ${sizes[0]} bytes, ${sizes[1]} gzip, ${sizes[2]} brotli`);
