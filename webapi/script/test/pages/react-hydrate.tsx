import { hydrateRoot } from "react-dom/client";
import { App } from "./react-app";

declare global {
  interface Window {
    recovered: string[];
  }
}
window.recovered = [];
hydrateRoot(document.getElementById("root")!, <App />, {
  onRecoverableError: (error) => window.recovered.push(String(error)),
});
