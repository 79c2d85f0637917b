import { renderToString } from "react-dom/server";
import { App } from "./react-app";

console.log(renderToString(<App />));
