/** The page of react-app.tsx, for Vue. */
import { defineComponent, h, onMounted, ref } from "vue";

export const App = defineComponent({
  setup() {
    const count = ref(0);
    const order = ref(["sales@example.com", "help@example.com"]);
    const open = ref(false);
    const text = ref("sales@example.com");
    const ready = ref(false);
    onMounted(() => (ready.value = true));
    return () =>
      h("main", { "data-ready": ready.value }, [
        h("button", { id: "count", onClick: () => count.value++ }, String(count.value)),
        h("button", { id: "reverse", onClick: () => (order.value = [...order.value].reverse()) }),
        h("button", { id: "open", onClick: () => (open.value = !open.value) }),
        h("button", {
          id: "change",
          onClick: () => (order.value = ["help@example.com", "x@example.net", "sales@example.com"]),
        }),
        h("p", { id: "text" }, [
          `Rendered ${count.value} times: write to ${order.value[0]} or `,
          h("b", order.value[order.value.length - 1]),
          ".",
        ]),
        h("p", { id: "constant" }, "sales@example.com"),
        h(
          "ul",
          order.value.map((address) =>
            h("li", { key: address }, h("a", { href: `mailto:${address}?subject=${count.value}` }, address)),
          ),
        ),
        open.value ? h("aside", "sales@example.com") : null,
        h("input", {
          id: "input",
          value: text.value,
          onInput: (event: Event) => (text.value = (event.target as HTMLInputElement).value),
        }),
        h("output", String(text.value.length)),
      ]);
  },
});
