import { createApp } from "vue";
import { App } from "./vue-app";

createApp(App).mount("#root");
