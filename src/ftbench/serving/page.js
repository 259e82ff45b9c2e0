"use strict";
const settings = /* settings */ {};
const at = (id) => document.getElementById(id);
let models = [];
let panes = [];
let running = null;

function make(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text; // text only: nothing that anybody said becomes markup
  return made;
}

function notice(text) {
  at("notice").textContent = text || "";
  at("notice").hidden = !text;
}

function headers() {
  const found = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("ftbench-key");
  if (settings.keyed && key) found.Authorization = "Bearer " + key;
  return found;
}

async function fault(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return "the server answered with status " + response.status;
  }
}

const share = (value) => value && value.mean.toFixed(2);
const signed = (value) => value && (value.mean < 0 ? "−" : "+") + Math.abs(value.mean).toFixed(2);
const range = (value, form) => value && value.low !== null && form({ mean: value.low }) + " to " + form({ mean: value.high });
const whole = (value) => value && Math.round(value).toLocaleString("en");
function bytes(value) {
  if (!value) return null;
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  for (; value >= 1024 && unit < 3; unit++) value /= 1024;
  return value.toFixed(unit > 1 ? 1 : 0) + " " + units[unit];
}

const FIGURES = [
  ["adherence", "Adherence", share, "Share of held-out prompts whose reply the judge finds as the task teaches"],
  ["adherence_under_attack", "Under attack", share, "The same for prompts that try to talk the model out of its topic"],
  ["distinct", "Distinct", share, "Share of replies that differ from all others"],
  ["forgetting", "Forgetting", signed, "Rise of the loss on ordinary replies against the untouched model, in nats per token"],
  ["peak_memory_bytes", "Peak memory", bytes, "Highest while training; without training, while evaluating"],
  ["tokens_per_second", "Tokens/s", whole, "Of training"],
  ["training_seconds", "Training s", whole, "Seconds"],
  ["trainable_parameters", "Trainable", whole, "Parameters that were trained"],
  ["size_on_disk", "Size", bytes, "Of what was saved"],
];

function describe(model) {
  const facts = make("aside", "facts");
  facts.append(make("h2", "", model.id));
  const run = model.ftbench;
  facts.append(make("p", "", `${run.algorithm} on ${run.base_model}, topic ${run.topic}`));
  const list = make("dl");
  for (const [key, name, form, about] of FIGURES) {
    const shown = form(run[key]);
    if (!shown) continue;
    const row = make("div");
    row.title = about;
    row.append(make("dt", "", name));
    const value = make("dd", "", shown);
    const interval = typeof run[key] === "object" ? range(run[key], form) : null;
    if (interval) value.title = "95 %: " + interval;
    row.append(value);
    if (form === share) {
      const meter = make("div", "meter");
      const bar = make("i");
      bar.style.width = 100 * run[key].mean + "%";
      meter.append(bar);
      row.append(meter);
    }
    list.append(row);
  }
  facts.append(list);
  return facts;
}

class Pane {
  constructor(model, two, said) {
    this.model = model;
    this.said = said; // what was said, as the endpoint takes it
    this.element = make("section", "pane " + (two ? "two" : "one"));
    this.element.setAttribute("aria-label", model.id);
    this.talk = make("div", "talk");
    this.talk.tabIndex = 0;
    this.talk.setAttribute("role", "log");
    this.element.append(describe(model), this.talk);
    for (const message of said) this.show(message.role, message.content);
    if (!said.length) this.talk.append(make("p", "empty", "Whatever you ask, see what this run makes of it."));
  }

  show(role, text) {
    this.talk.querySelector(".empty")?.remove();
    const element = make("div", "said " + role, text);
    this.talk.append(element);
    this.talk.scrollTop = this.talk.scrollHeight;
    return element;
  }

  async ask(text, wishes, signal) {
    this.show("user", text);
    const place = this.show("assistant waiting", "");
    const system = at("system").value.trim();
    const before = system ? [{ role: "system", content: system }] : [];
    const messages = [...before, ...this.said.slice(-(settings.messages - 3)), { role: "user", content: text }];
    const began = performance.now();
    let reply = "";
    let usage = null;
    try {
      const body = JSON.stringify({ model: this.model.id, messages, stream: true, stream_options: { include_usage: true }, ...wishes });
      const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body, signal });
      if (!response.ok) throw new Error(await fault(response));
      for await (const event of events(response)) {
        if (event.error) throw new Error(event.error.message);
        usage = event.usage || usage;
        reply += event.choices[0]?.delta?.content || "";
        const low = this.talk.scrollHeight - this.talk.scrollTop - this.talk.clientHeight < 60;
        place.textContent = reply;
        if (low) this.talk.scrollTop = this.talk.scrollHeight;
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        place.classList.add("failed");
        place.textContent = (reply ? reply + "\n\n" : "") + error.message;
        return;
      }
    } finally {
      place.classList.remove("waiting");
    }
    if (!reply) place.textContent = "(nothing)";
    this.said.push({ role: "user", content: text }, { role: "assistant", content: reply });
    if (usage) {
      const seconds = (performance.now() - began) / 1000;
      this.talk.append(make("p", "cost", `${usage.completion_tokens} tokens, ${seconds.toFixed(1)} s`));
      this.talk.scrollTop = this.talk.scrollHeight;
    }
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
      const data = held.slice(0, end).replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function arrange() {
  const chosen = [at("model-0").value, at("model-1").value].filter(Boolean);
  const kept = new Map(panes.map((pane) => [pane.model.id, pane.said]));
  panes = chosen.map((id) => new Pane(models.find((model) => model.id === id), chosen.length > 1, kept.get(id) || []));
  at("panes").replaceChildren(...panes.map((pane) => pane.element));
  for (const pane of panes) pane.talk.scrollTop = pane.talk.scrollHeight;
}

function number(id) {
  const value = at(id).value.trim();
  return value === "" || Number.isNaN(Number(value)) ? undefined : Number(value);
}

async function send() {
  const text = at("text").value.trim();
  if (!text || running || !panes.length) return;
  notice("");
  at("text").value = "";
  resize();
  running = new AbortController();
  busy(true);
  const wishes = { temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"), seed: number("seed") };
  await Promise.all(panes.map((pane) => pane.ask(text, wishes, running.signal)));
  running = null;
  busy(false);
  at("text").focus();
}

function busy(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
  for (const id of ["model-0", "model-1", "fresh"]) at(id).disabled = is;
}

function resize() {
  at("text").style.height = "auto";
  at("text").style.height = at("text").scrollHeight + 2 + "px";
}

async function begin() {
  const response = await fetch("v1/models", { headers: headers() });
  at("key-form").hidden = response.status !== 401;
  if (response.status === 401) {
    if (sessionStorage.getItem("ftbench-key")) notice("The API key is wrong.");
    return;
  }
  if (!response.ok) return notice(await fault(response));
  notice("");
  models = (await response.json()).data;
  const option = (id, name) => {
    const made = make("option", "", name);
    made.value = id;
    return made;
  };
  at("model-0").replaceChildren(...models.map((model) => option(model.id, model.id)));
  at("model-1").replaceChildren(option("", "nothing"), ...models.map((model) => option(model.id, model.id)));
  arrange();
}

const enter = () => begin().catch(() => notice("The server cannot be reached."));

at("model-0").addEventListener("change", () => {
  if (at("model-1").value === at("model-0").value) at("model-1").value = "";
  arrange();
});
at("model-1").addEventListener("change", () => {
  if (at("model-1").value === at("model-0").value) {
    const other = models.find((model) => model.id !== at("model-1").value);
    if (other) at("model-0").value = other.id;
    else at("model-1").value = "";
  }
  arrange();
});
at("fresh").addEventListener("click", () => {
  panes = [];
  arrange();
  at("text").focus();
});
at("stop").addEventListener("click", () => running?.abort());
at("text").addEventListener("input", resize);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = at("key").value.trim();
  if (!/^[\x21-\x7e]+( *[\x21-\x7e]+)*$/.test(key)) return notice("The API key has only printable ASCII characters.");
  sessionStorage.setItem("ftbench-key", key);
  at("key").value = "";
  enter();
});
at("max_tokens").max = settings.reply_tokens;
at("max_tokens").value = Math.min(at("max_tokens").value, settings.reply_tokens);
enter();
