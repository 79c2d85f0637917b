/** A page as React applications are: state, keyed lists, controlled inputs, links, an effect. */
import { useEffect, useState } from "react";

export function App() {
  const [count, setCount] = useState(0);
  const [order, setOrder] = useState(["sales@example.com", "help@example.com"]);
  const [open, setOpen] = useState(false);
  const [text, setText] = useState("sales@example.com");
  const [ready, setReady] = useState(false);
  useEffect(() => setReady(true), []);
  return (
    <main data-ready={ready}>
      <button id="count" onClick={() => setCount(count + 1)}>
        {count}
      </button>
      <button id="reverse" onClick={() => setOrder([...order].reverse())} />
      <button id="open" onClick={() => setOpen(!open)} />
      <button id="change" onClick={() => setOrder(["help@example.com", "x@example.net", "sales@example.com"])} />
      <p id="text">
        Rendered {count} times: write to {order[0]} or <b>{order[order.length - 1]}</b>.
      </p>
      <p id="constant">sales@example.com</p>
      <ul>
        {order.map((address) => (
          <li key={address}>
            <a href={`mailto:${address}?subject=${count}`}>{address}</a>
          </li>
        ))}
      </ul>
      {open ? <aside>sales@example.com</aside> : null}
      <input id="input" value={text} onChange={(event) => setText(event.target.value)} />
      <output>{text.length}</output>
    </main>
  );
}
