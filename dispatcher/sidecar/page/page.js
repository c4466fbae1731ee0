/* The status page: draws what /status/stream says, once a second. It only reads, keeps nothing, and writes text as
   text: no part of what it shows is ever taken for markup. Uses uPlot, which stands beside it. */
"use strict";

(() => {
  const SPAN = 300; // seconds that the charts show
  const SILENCE = 5000; // ms without an event after which a stream that seems open is taken for dead
  const RETRY = 2000; // ms
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // ------------------------------------------------------------------------------------------ numbers and times

  const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const three = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });
  const count = (value) => whole.format(value);
  const rate = (value) => (value >= 100 ? whole : three).format(value);
  const many = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;

  /** Seconds with a unit that suits them, as [number, unit]. */
  function span(seconds) {
    if (seconds === null || seconds === undefined) return ["–", ""];
    if (seconds >= 172800) return [three.format(seconds / 86400), "d"];
    if (seconds >= 7200) return [three.format(seconds / 3600), "h"];
    if (seconds >= 120) return [three.format(seconds / 60), "min"];
    if (seconds >= 1) return [three.format(seconds), "s"];
    if (seconds === 0) return ["0", "s"];
    return seconds >= 0.001 ? [three.format(seconds * 1000), "ms"] : [three.format(seconds * 1e6), "µs"];
  }
  const time = (seconds) => span(seconds).join(" ").trim();

  function bytes(number) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let place = 0;
    while (number >= 999.5 && place < units.length - 1) { number /= 1000; place += 1; }
    return `${three.format(number)} ${units[place]}`;
  }

  /** A time that has passed, in whole units: 3 h 12 min. */
  function age(seconds) {
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    const first = parts.findIndex(([size]) => seconds >= size);
    if (first < 0) return "0 s";
    const [size, unit] = parts[first];
    const [below, belowUnit] = parts[first + 1] || [0, ""];
    const rest = below ? Math.floor((seconds % size) / below) : 0;
    return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${belowUnit}` : ""}`;
  }

  const hour = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const day = new Intl.DateTimeFormat("en-GB", { day: "2-digit", month: "short" });
  function instant(at, now) {
    const date = new Date(at * 1000);
    return now - at < 64800 ? hour.format(date) : `${day.format(date)} ${hour.format(date)}`;
  }
  const words = (name) => name.replaceAll("_", " ");

  // ------------------------------------------------------------------------------------------------- elements

  function put(id, text) {
    if ($(id).textContent !== text) $(id).textContent = text;
  }

  /** An element with a text or children; attributes as given. */
  function make(tag, content, attributes = {}) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    for (const one of Array.isArray(content) ? content : [content]) element.append(one);
    return element;
  }
  const badge = (text, tone) => make("span", text, { class: "badge", "data-tone": tone });

  const drawn = new Map();
  /** Children made anew, only if what they are made of has changed: a selection in them survives. */
  function fill(element, key, children) {
    if (drawn.get(element) === key) return;
    drawn.set(element, key);
    element.replaceChildren(...children());
  }

  function table(id, rows, nothing, columns) {
    fill($(id).tBodies[0], JSON.stringify(rows) + nothing, () => (rows.length ? rows.map((row) => make("tr", row.map(cell)))
      : [make("tr", make("td", nothing, { class: "empty wide", colspan: columns }))]));
  }
  /** A cell: a text; or what it is made of, by name. */
  function cell(value) {
    if (typeof value === "string") return make("td", value);
    if ("number" in value) return make("td", value.number, { class: "n" });
    if ("head" in value) return make("th", value.head, { scope: "row" });
    if ("tone" in value) return make("td", badge(value.text, value.tone));
    if ("codes" in value) return make("td", make("div", value.codes.map(([text, tone]) => badge(text, tone)), { class: "codes" }));
    const small = value.small ? [make("small", value.small)] : [];
    return make("td", [value.text, ...small], { class: value.kind || "wide" });
  }

  // --------------------------------------------------------------------------------------------------- charts

  const line = (label, colour, key, more = {}) => ({ label, colour, key, ...more });
  const CHARTS = [
    { id: "throughput", title: "Throughput, messages/s", unit: rate, lines: [
      line("in", "blue", "taken"), line("out", "green", "delivered"), line("failed", "red", "failed")] },
    { id: "held", title: "Held messages and age", unit: count, right: time, lines: [
      line("held", "blue", "held", { fill: true }), line("oldest", "amber", "oldest", { right: true })] },
    { id: "flight", title: "Requests in flight", unit: count, lines: [
      line("in flight", "blue", "in_flight", { fill: true }), line("limit", "amber", "limit", { dash: true })] },
    { id: "latency", title: "Latency, last 10 s", unit: time, logarithmic: true, lines: [
      line("message p50", "blue", "message_p50"), line("p99", "violet", "message_p99"),
      line("request p50", "green", "request_p50", { dash: true }), line("p99", "amber", "request_p99", { dash: true })] },
  ];
  const COLUMNS = ["at", ...new Set(CHARTS.flatMap((chart) => chart.lines.map((one) => one.key)))];
  let history = Object.fromEntries(COLUMNS.map((name) => [name, []]));

  function remember(sample) {
    if (!sample || sample.at <= (history.at.at(-1) ?? 0)) return;
    // Made anew, because a paused chart keeps the columns it was given.
    history = Object.fromEntries(COLUMNS.map((name) => [name, [...history[name].slice(-SPAN - 9), sample[name]]]));
  }

  /** Five minutes; less while it is not yet so old, but a minute. */
  const minutes = (_plot, low, high) => [Math.max(high - SPAN, Math.min(low, high - 60)), high];
  const STEPS = [1, 2, 5].flatMap((step) => [...Array(10).keys()].map((power) => step * 10 ** power)).sort((a, b) => a - b);
  const top = (_plot, _low, high) => [0, high > 0 ? high * 1.12 : 1];
  function decades(_plot, low, high) {
    if (!(high > 0)) return [0.001, 1];
    return [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high * 1.0001))];
  }
  function decadeMarks(_plot, _axis, low, high) {
    const steps = high / low > 150 ? [1] : [1, 2, 5];
    const marks = [];
    for (let decade = low; decade <= high * 1.0001; decade *= 10) marks.push(...steps.map((step) => step * decade));
    return marks.filter((mark) => mark <= high * 1.0001);
  }
  /** Hours and minutes; seconds only where marks are less than a minute apart. */
  function clockMarks(_plot, splits) {
    const kept = splits[1] - splits[0] < 60 ? 8 : 5;
    return splits.map((at) => hour.format(new Date(at * 1000)).slice(0, kept));
  }
  const marks = (unit) => (_plot, splits) => splits.map(unit);

  function makeChart(chart) {
    const figure = $(`chart-${chart.id}`);
    chart.values = chart.lines.map((one) => make("b", "–"));
    const keys = chart.lines.map((one, place) => make("span", [`${one.label} `, chart.values[place]],
      { class: "key", "data-colour": one.colour, ...(one.dash ? { "data-dash": "" } : {}) }));
    chart.host = make("div", [], { class: "plot", role: "img" });
    const title = make("h2", chart.title, { id: `title-${chart.id}` });
    figure.replaceChildren(make("figcaption", [title, make("p", keys)]), chart.host);
    figure.setAttribute("aria-labelledby", `title-${chart.id}`);
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = (more) => ({ stroke: () => css("soft"), grid: { stroke: () => css("grid"), width: 1 }, ticks: { show: false }, font, gap: 6, ...more });
    const fine = { size: 58, space: 32 };
    const axes = [
      axis({ space: 70, size: 26, values: clockMarks }),
      axis({ ...fine, ...(chart.unit === count ? { incrs: STEPS } : {}), ...(chart.logarithmic ? { splits: decadeMarks, filter: (_plot, splits) => splits } : {}), values: marks(chart.unit) }),
    ];
    if (chart.right) axes.push(axis({ ...fine, side: 1, scale: "right", grid: { show: false }, values: marks(chart.right) }));
    chart.plot = new uPlot({
      ...size(chart.host),
      scales: {
        x: { time: true, range: minutes },
        y: chart.logarithmic ? { distr: 3, range: decades } : { range: top },
        ...(chart.right ? { right: { range: top } } : {}),
      },
      series: [{}, ...chart.lines.map((one) => ({
        scale: one.right ? "right" : "y", label: one.label, width: 1.75, points: { show: false }, spanGaps: false,
        stroke: () => css(one.colour), ...(one.fill ? { fill: () => css("fill") } : {}), ...(one.dash ? { dash: [5, 4] } : {}),
        ...(one.key === "limit" ? { paths: uPlot.paths.stepped({ align: 1 }) } : {}),
      }))],
      axes,
      legend: { show: false },
      cursor: { sync: { key: "all" }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
      hooks: { setCursor: [() => tellValues(chart)] },
    }, columns(chart), chart.host);
    new ResizeObserver(() => chart.plot.setSize(size(chart.host))).observe(chart.host);
  }
  const size = (host) => ({ width: Math.max(200, host.clientWidth), height: host.clientHeight });
  const columns = (chart) => [history.at, ...chart.lines.map((one) => history[one.key])];

  /** Beside the title: the values under the cursor, else the latest. */
  function tellValues(chart) {
    if (!chart.plot) return;
    const place = chart.plot.cursor.idx ?? chart.plot.data[0].length - 1;
    chart.lines.forEach((one, number) => {
      const value = chart.plot.data[number + 1][place];
      chart.values[number].textContent = value === null || value === undefined ? "–" : (one.right ? chart.right : chart.unit)(value);
    });
  }
  function drawCharts() {
    for (const chart of CHARTS) {
      chart.plot.setData(columns(chart));
      tellValues(chart);
      const said = chart.lines.map((one, number) => `${one.label} ${chart.values[number].textContent}`);
      chart.host.setAttribute("aria-label", `${chart.title}: now ${said.join(", ")}`);
    }
  }

  // ------------------------------------------------------------------------------------- what the status says

  const STATES = {
    open: ["Ready", "ok"], throttled: ["Throttled", "warn"], quota: ["Quota spent", "warn"], outage: ["Outage", "warn"],
    halted: ["Halted", "bad"], refused: ["Refused", "bad"], new: ["Starting", "idle"], draining: ["Stopped", "bad"], closed: ["Stopped", "bad"],
  };
  const PHASES = { starting: ["Starting", "idle"], draining: ["Draining", "warn"], closed: ["Closed", "idle"] };
  const stateOf = (phase, state) => PHASES[phase] || STATES[state] || [state, "warn"];

  /** What deserves a sentence: [tone, head, text]. */
  function notes(now) {
    const { gate, held } = now, found = [];
    const wait = gate.paused_for > 0 ? ` The next request may try in ${time(Math.ceil(gate.paused_for))}.` : "";
    if (now.phase === "draining") found.push(["warn", "Draining.", `Nothing new is taken; the process ends when what is held (${many(held.messages, "message")}) is delivered, or its time is up.`]);
    if (now.phase === "closed") found.push(["idle", "Closed.", "The drain is over."]);
    if (gate.state === "halted") found.push(["bad", "Halted.", `The upstream refuses the token or the URL (${gate.reason}). What is held (${many(held.messages, "message")}) waits for another token: replace it, and send the process SIGHUP.${wait}`]);
    if (gate.state === "refused") found.push(["bad", "Refused at first contact.", `The upstream refuses the token or the URL (${gate.reason}). Messages fail at once until it takes one.${wait}`]);
    if (gate.state === "throttled") found.push(["warn", "Throttled.", `The service asked to wait.${wait} Nothing is lost: ${many(held.messages, "message")} held.`]);
    if (gate.state === "quota") found.push(["warn", "Quota spent.", `The account's daily quota is used up.${wait} What cannot wait so long fails.`]);
    if (gate.state === "outage") found.push(["warn", "Outage.", `Nobody answers at the upstream; single requests try again. ${many(held.messages, "message")} held.`]);
    if (now.phase === "ready" && ["draining", "closed"].includes(gate.state)) found.push(["bad", "Stopped.", "The dispatcher has died; restart the process. Its log says why."]);
    if (gate.stopped_queues_total) {
      const more = gate.stopped_queues_total - gate.stopped_queues.length;
      found.push(["warn", `${many(gate.stopped_queues_total, "queue")} stopped at a failed message:`, `${gate.stopped_queues.join(", ")}${more ? ` and ${count(more)} more` : ""}.`]);
    }
    const box = now.outbox;
    if (box && (box.failure || box.death)) found.push(["bad", "Outbox.", `${box.death || box.failure}. ${box.death ? "Restart the process." : "Nothing is accepted until it works again."}`]);
    return found;
  }

  function drawHead(now) {
    const [text, tone] = stateOf(now.phase, now.gate.state);
    put("state", text);
    $("state").dataset.tone = tone;
    put("name", now.name === "default" ? "" : now.name);
    put("facts", `version ${now.version} · up ${age(now.uptime)}`);
    document.title = `${text} · dispatcher${now.name === "default" ? "" : ` ${now.name}`}`;
    const said = notes(now);
    fill($("notes"), JSON.stringify(said), () => said.map(([kind, head, rest]) => make("p", [make("b", head), ` ${rest}`], { class: "note", "data-tone": kind })));
  }

  function drawTiles({ rates, latency, held, in_flight: flight, messages, intake }) {
    put("in", rate(rates.taken));
    put("in-more", `${many(messages.taken, "message")} taken in all`);
    put("out", rate(rates.delivered));
    put("out-more", `${many(messages.delivered, "message")} confirmed in all`);
    put("failed", count(messages.failed));
    put("failed-unit", messages.failed === 1 ? "message" : "messages");
    const refused = Object.values(messages.refused).reduce((sum, one) => sum + one, 0);
    put("failed-more", `${rate(rates.failed)}/s now · ${count(refused)} refused at the door`);
    put("intake", rate(rates.intake));
    put("intake-more", many(intake.connections, "connection"));
    put("held", count(held.messages));
    put("held-unit", `of ${many(held.messages_limit, "message")}`);
    meter("held-meter", Math.max(held.messages / held.messages_limit, held.bytes / held.bytes_limit));
    put("held-more", `${bytes(held.bytes)} of ${bytes(held.bytes_limit)}`);
    const [oldest, unit] = held.messages ? span(held.oldest_age) : ["–", ""];
    put("oldest", oldest);
    put("oldest-unit", unit);
    const waiting = Math.max(held.waiting_for_room, intake.waiting);
    put("oldest-more", waiting ? `${many(waiting, "caller")} ${waiting === 1 ? "waits" : "wait"} for room` : "nobody waits for room");
    put("flight", count(flight.requests));
    put("flight-unit", `of ${many(flight.limit, "request")}`);
    meter("flight-meter", flight.limit ? flight.requests / flight.limit : 0, 2); // a limit in full use is no alarm
    const share = rates.messages_per_request;
    put("flight-more", `${rate(rates.requests)} requests/s${share === null ? "" : ` · ${three.format(share)} messages each`}`);
    const pair = ({ p50, p99 }) => (p50 === null ? "–" : `${time(p50)} · ${time(p99)}`);
    put("latency", pair(latency.message));
    put("latency-more", `requests alone: ${pair(latency.request)}`);
  }
  function meter(id, share, alarm = 0.75) {
    const one = $(id);
    one.low = Math.min(1, alarm);
    one.high = Math.min(1, alarm * 1.25);
    one.optimum = 0;
    one.value = Math.min(1, share);
    one.textContent = `${whole.format(share * 100)} %`;
  }

  const toneOf = (code) => (/^2|^3/.test(code) ? "ok" : /^4/.test(code) ? "warn" : "bad");
  const sorted = (counts) => Object.entries(counts).filter(([, number]) => number).sort(([, one], [, other]) => other - one);

  function drawTables(now) {
    table("failures", now.intake.recent_failures.map((one) => [
      { text: instant(one.at, now.at), kind: "nowrap" }, { number: `×${count(one.number)}` },
      { text: words(one.outcome) + (one.status ? ` (${one.status})` : ""), tone: one.outcome === "rejected" || one.outcome === "invalid" ? "warn" : "bad" },
      { text: words(one.certainty), kind: "nowrap" }, { text: one.reason, small: one.last && one.outcome !== "rejected" ? `last attempt: ${one.last}` : "" },
    ]), "No message has failed.", 5);
    table("routes", Object.entries(now.intake.requests).map(([route, codes]) => [
      { head: words(route) }, { codes: Object.entries(codes).map(([code, number]) => [`${code} ×${count(number)}`, toneOf(code)]) },
      { number: count(Object.values(codes).reduce((sum, one) => sum + one, 0)) },
    ]), "No request has been answered.", 3);
    table("upstream", sorted(now.requests.by_code).map(([code, number]) => [
      { text: words(code), tone: toneOf(code) }, { number: count(number) }]), "No request has been sent.", 2);
    const rows = [...sorted(now.messages.finished).map(([name, number]) => [words(name), number]),
      ...sorted(now.messages.refused).map(([name, number]) => [`refused: ${words(name)}`, number]),
      ...sorted(now.messages.retried).map(([name, number]) => [`tried again: ${words(name)}`, number]),
      ...sorted(now.intake.sent_alone).map(([name, number]) => [`sent alone: ${words(name)}`, number])];
    table("messages", rows.map(([name, number]) => [{ head: name }, { number: count(number) }]), "No message has been settled.", 2);
    table("events", now.events.slice(0, 12).map((one) => {
      const [text, tone] = stateOf(one.phase, one.state);
      const queues = one.stopped_queues ? `${many(one.stopped_queues, "stopped queue")}. ` : "";
      return [{ text: instant(one.at, now.at), kind: "nowrap" }, { text, tone }, `${queues}${one.reason}` || "–"];
    }), "Nothing yet.", 3);
  }

  /** What the outbox keeps; nothing where there is none. */
  function drawOutbox(now) {
    const box = now.outbox;
    $("outbox").hidden = !box;
    if (!box) return;
    const oldest = box.oldest_age === null ? "" : `, the oldest for ${age(box.oldest_age)}`;
    const free = box.free_bytes === null ? "" : `, ${bytes(box.free_bytes)} free`;
    put("outbox-facts", `${many(box.waiting + box.claimed, "message")} held${oldest} (${count(box.claimed)} on their way) · `
      + `${many(box.dead, "dead letter")} · ${bytes(box.disk_bytes)} on disk${free}`);
    table("letters", box.dead_letters.map((one) => [
      { text: instant(one.acceptedAt, now.at), kind: "nowrap" }, { text: one.messageId, kind: "nowrap" },
      one.destination, { number: count(one.attempts.length) }, { text: one.reason },
    ]), box.dead ? "They are being read." : "No dead letters.", 5);
  }

  // ---------------------------------------------------------------------------------------------- the stream

  let latest = null, isPaused = false, source = null, heardAt = 0, retry = 0, hasEnded = false, drawnAt = 0;

  function draw() {
    if (!latest || isPaused || document.hidden) return;
    drawnAt = latest.at;
    drawHead(latest);
    drawTiles(latest);
    drawOutbox(latest);
    drawTables(latest);
    drawCharts();
  }

  function tellLink() {
    const at = drawnAt ? `, as of ${hour.format(new Date(drawnAt * 1000))}` : "";
    const [kind, text] = source && heardAt ? (isPaused ? ["wait", `paused${at}`] : ["live", "live"])
      : drawnAt ? ["lost", hasEnded ? `the sidecar has ended${at}; trying again` : `connection lost${at}; trying again`] : ["wait", "connecting…"];
    $("link").dataset.link = kind;
    put("link", text);
    document.body.classList.toggle("stale", kind === "lost");
  }

  function heard(event) {
    heardAt = Date.now();
    hasEnded = false;
    tellLink();
    return JSON.parse(event.data);
  }

  function lose() {
    source?.close();
    source = null;
    heardAt = 0;
    tellLink();
    clearTimeout(retry);
    retry = setTimeout(listen, RETRY);
  }

  function listen() {
    const stream = new EventSource("status/stream");
    source = stream;
    heardAt = 0;
    setTimeout(() => { if (source === stream && !heardAt) lose(); }, SILENCE * 2);
    stream.addEventListener("history", (event) => { history = heard(event); });
    stream.addEventListener("status", (event) => { latest = heard(event); remember(latest.sample); draw(); });
    stream.addEventListener("end", () => { hasEnded = true; lose(); });
    stream.addEventListener("error", lose); // its own retries end at the first answer that is no stream
  }

  setInterval(() => { if (source && heardAt && Date.now() - heardAt > SILENCE) lose(); }, 1000);
  $("pause").addEventListener("click", () => {
    isPaused = !isPaused;
    $("pause").setAttribute("aria-pressed", String(isPaused));
    tellLink();
    draw();
  });
  document.addEventListener("visibilitychange", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => CHARTS.forEach((chart) => chart.plot.redraw(false)));
  CHARTS.forEach(makeChart);
  listen();
})();
