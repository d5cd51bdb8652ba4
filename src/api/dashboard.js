"use strict";
const $ = (id) => document.getElementById(id);
const make = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key === "class" ? node.className = value : node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const WORDS = { port_scan: "port scan", ddos: "DDoS", c2_beacon: "C2 beacon", crypto_mining: "crypto mining", tor: "Tor", behavior: "behavior", brute_force: "brute force", exfiltration: "exfiltration" };
const number = (n) => Math.abs(n) >= 1000 ? Math.round(n).toLocaleString("en") : String(+n.toPrecision(4));
const moment = (text) => text.replace("T", " ").replace(/(\.\d+)?Z$/, "");
const known = new Map();
let following = true, first = true;

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { accept: "application/json", ...options.headers, ...(token ? { authorization: "Bearer " + token } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401 && !$("ask").open) $("ask").showModal();
  const body = await response.json().catch(() => ({}));
  if (!response.ok && body.detail) throw new Error(body.detail + (body.remedy ? " (" + body.remedy + ")" : ""));
  return body;
}

function evidence(list) {
  const rows = list.map((e) => make("tr", {}, make("td", {}, e.name.replaceAll("_", " ")), make("td", { class: "number" }, number(e.value)),
    make("td", { class: "number" }, e.threshold === null ? "" : number(e.threshold)), make("td", {}, e.unit), make("td", {}, e.tier)));
  const head = make("tr", {}, make("th", {}, "what"), make("th", { class: "number" }, "measured"), make("th", { class: "number" }, "threshold"), make("th", {}, "unit"), make("th", {}, "tier"));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function facts(anomaly) {
  const targets = anomaly.targets.slice(0, 8).map((t) => t.address + (t.ports.length ? " : " + t.ports.slice(0, 8).join(", ") + (t.port_count > Math.min(8, t.ports.length) ? " … (" + t.port_count + " ports)" : "") : ""));
  if (anomaly.target_count > targets.length) targets.push("… " + number(anomaly.target_count) + " in all");
  const pairs = [["actor", anomaly.actor], ["targets", targets.join("\n")], ["first seen", moment(anomaly.first_seen)], ["last seen", moment(anomaly.last_seen)],
    ["confirmed", moment(anomaly.detection_timestamp)], ["confidence", (100 * anomaly.confidence).toFixed(1) + " %"],
    ["or, by the same evidence", (anomaly.alternatives || []).map((a) => (WORDS[a.threat] || a.threat) + " (" + (100 * a.share).toFixed(0) + " %)").join(", ")], ["windows", String(anomaly.updates)],
    ["ATT&CK", anomaly.mitre.join(", ")], ["methods", Object.keys(anomaly.tiers.statistical).join(", ").replaceAll("_", " ")], ["interfaces", anomaly.interface_ids.join(", ")],
    ["account", anomaly.account_id], ["related", anomaly.related.length ? anomaly.related.length + " other anomalies" : ""], ["degraded", anomaly.degraded.join(", ")], ["id", anomaly.anomaly_id]];
  const list = make("dl");
  for (const [name, value] of pairs) if (value) list.append(make("dt", {}, name), make("dd", { class: "lines" }, name === "id" ? make("code", {}, value) : value));
  return list;
}

function verdict(anomaly) {
  const answer = make("span", { role: "status" });
  const give = (value, label) => {
    const button = make("button", { type: "button" }, label);
    button.onclick = async () => {
      try {
        await ask("/v1/anomalies/" + anomaly.anomaly_id + "/feedback", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ verdict: value, by: "dashboard" }) });
        answer.textContent = "noted, thank you";
      } catch (error) { answer.textContent = error.message }
    };
    return button;
  };
  return make("p", {}, give("true_positive", "it was true"), " ", give("false_positive", "it was not"), " ", answer);
}

function inside(anomaly) {
  const stages = anomaly.tiers.validation.stages.map((s) => make("tr", {}, make("td", {}, s.name.replaceAll("_", " ")), make("td", {}, s.reason)));
  return make("div", { class: "more" }, make("div", { class: "columns" },
    make("div", {}, make("h3", {}, "Evidence"), evidence(anomaly.evidence), make("h3", {}, "Validation"), make("div", { class: "scroll" }, make("table", {}, make("tbody", {}, ...stages)))),
    make("div", {}, make("h3", {}, "Facts"), facts(anomaly), make("h3", {}, "Was it true?"), verdict(anomaly))));
}

function row(anomaly) {
  const when = moment(anomaly.first_seen) + (anomaly.status === "closed" ? " · closed" : "");
  return make("summary", {}, make("span", {}, make("span", { class: "pill " + anomaly.severity }, anomaly.severity)), make("span", { class: "threat" }, WORDS[anomaly.threat] || anomaly.threat),
    make("span", { class: "text" }, anomaly.summary), make("span", { class: "when" }, when));
}

function show(anomalies, append) {
  const list = $("list");
  const wanted = new Set(anomalies.map((a) => a.anomaly_id));
  if (!append) for (const [id, entry] of known) if (!wanted.has(id) && !entry.older) { entry.item.remove(); known.delete(id) }
  anomalies.forEach((anomaly, index) => {
    const stamp = [anomaly.updates, anomaly.last_seen, anomaly.status, anomaly.severity].join();
    let entry = known.get(anomaly.anomaly_id);
    if (!entry) {
      const details = make("details");
      const item = make("li", first || append ? {} : { class: "fresh" }, details);
      entry = { item, details, stamp: "", older: append };
      known.set(anomaly.anomaly_id, entry);
    }
    if (entry.stamp !== stamp) {
      const open = entry.details.open;
      entry.stamp = stamp;
      entry.details.replaceChildren(row(anomaly));
      const fill = () => { if (entry.details.open && entry.details.children.length === 1) entry.details.append(inside(anomaly)) };
      entry.details.ontoggle = fill;
      if (open) fill();
    }
    if (append) list.append(entry.item);
    else if (list.children[index] !== entry.item) list.insertBefore(entry.item, list.children[index] || null);
  });
  first = false;
}

function query() {
  const chosen = new URLSearchParams();
  for (const [name, value] of new FormData($("filters"))) if (value.trim()) chosen.set(name, value.trim());
  return chosen;
}

async function refresh() {
  try {
    const chosen = query();
    const page = await ask("/v1/anomalies?" + chosen);
    if (following) { show(page.anomalies, false); $("older").dataset.next = page.next || ""; $("older").hidden = !page.next }
    $("complaint").hidden = true;
    $("none").hidden = page.anomalies.length > 0;
    $("none").textContent = [...chosen].length ? "No anomaly fits these filters." : "No anomaly so far. What was judged and not told can be asked for below.";
    const open = page.anomalies.filter((a) => a.status === "open").length;
    const worst = page.anomalies.filter((a) => a.severity === "high" || a.severity === "critical").length;
    $("open").textContent = open + (page.next ? "+" : "");
    $("worst").textContent = worst + (page.next ? "+" : "");
  } catch (error) { $("complaint").textContent = error.message; $("complaint").hidden = false }
}

const rates = [];
let before = null;
async function pulse() {
  try {
    const ready = await ask("/health/ready");
    const phase = $("phase");
    phase.textContent = ready.status === "ready" ? ready.phase : ready.status.replace("_", " ") + " · " + ready.phase;
    phase.className = "pill " + ({ ready: "good", degraded: "high" }[ready.status] || "medium");
    $("banner").hidden = ready.degraded.length === 0;
    $("banner").querySelector("ul").replaceChildren(...ready.degraded.map((d) => make("li", {}, d.part + ": " + d.reason + " (since " + moment(d.since) + ")")));
    const shards = Object.values((await ask("/v1/status")).shards);
    const sum = (of) => shards.reduce((n, shard) => n + of(shard), 0);
    const now = performance.now(), records = sum((s) => s.records);
    if (before && now > before.now) {
      rates.push(Math.max(0, (records - before.records) / (now - before.now) * 1000));
      if (rates.length > 60) rates.shift();
      $("rate").textContent = number(Math.round(rates.slice(-3).reduce((a, b) => a + b) / Math.min(3, rates.length)));
      const most = Math.max(1, ...rates);
      $("spark").firstElementChild.setAttribute("points", rates.map((r, i) => (i * 120 / 59).toFixed(1) + "," + (25 - 23 * r / most).toFixed(1)).join(" "));
    }
    before = { now, records };
    $("records").textContent = number(records);
    $("refused").textContent = number(sum((s) => s.refused.count));
    const newest = shards.map((s) => s.newest).filter(Boolean).sort().pop();
    $("clock").textContent = newest ? "log time " + moment(newest) : "";
  } catch (error) { $("phase").textContent = "no answer"; $("phase").className = "pill critical" }
}

$("filters").oninput = () => { following = true; known.forEach((entry) => entry.item.remove()); known.clear(); first = true; refresh() };
$("filters").onsubmit = (event) => event.preventDefault();
$("older").onclick = async () => {
  const page = await ask($("older").dataset.next);
  following = false;
  show(page.anomalies, true);
  $("older").dataset.next = page.next || "";
  $("older").hidden = !page.next;
};
$("why").onsubmit = async (event) => {
  event.preventDefault();
  const address = new FormData($("why")).get("address").trim();
  try {
    const { rejections: silences } = await ask("/v1/rejections" + (address ? "?address=" + encodeURIComponent(address) : ""));
    const rows = silences.map((s) => make("tr", {}, make("td", {}, WORDS[s.threat] || s.threat), make("td", {}, s.summary), make("td", {}, s.stage.replaceAll("_", " ")), make("td", {}, s.reason)));
    const head = make("tr", {}, ...["threat", "what would have been said", "refused by", "because"].map((t) => make("th", {}, t)));
    $("silences").replaceChildren(rows.length ? make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))) : make("p", { class: "empty" }, "Nothing about it came near enough to be judged."));
  } catch (error) { $("silences").replaceChildren(make("p", {}, error.message)) }
};
// Changes come over a stream. While there is none, the list is asked for again and again, and the page says so.
const live = (is) => {
  $("live").textContent = is ? "live" : "disconnected, asking every 2 s";
  $("live").className = "pill " + (is ? "good" : "high");
};
let due = null;
const soon = () => { due ??= setTimeout(() => { due = null; refresh() }, 200) };
async function listen() {
  for (;;) {
    try {
      const token = sessionStorage.getItem("token");
      const response = await fetch("/v1/anomalies/stream?brief=true", { headers: token ? { authorization: "Bearer " + token } : {} });
      if (!response.ok) throw new Error("no stream");
      live(true);
      await refresh();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        if (events.some((event) => event.includes("\nevent: anomaly\n"))) soon();
      }
    } catch (error) { console.debug(error) }
    live(false);
    await refresh();
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}
$("ask").onclose = () => { sessionStorage.setItem("token", $("token").value); refresh(); pulse() };
pulse(); listen();
setInterval(pulse, 1000);
