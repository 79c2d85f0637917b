import { createSSRApp } from "vue";
import { renderToString } from "vue/server-renderer";
import { App } from "./vue-app";

console.log(await renderToString(createSSRApp(App)));
