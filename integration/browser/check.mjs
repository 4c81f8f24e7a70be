// Opens pages in a real browser, at three widths, light and dark. Fails if one breaks a rule of axe-core, needs to be
// scrolled sideways, logs an error, loads anything from elsewhere, is empty without JavaScript, or is to be live and is
// not.
//
//   node check.mjs BROWSER SCREENSHOTS [STATUS=]URL...
//
// STATUS is that of an error page.

import { mkdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { join } from "node:path";

import { chromium } from "playwright-core";

const [browserPath, screenshots, ...pages] = process.argv.slice(2);
const widths = [360, 768, 1280];
const schemes = ["light", "dark"];

const axe = await readFile(fileURLToPath(import.meta.resolve("axe-core")), "utf8");
await mkdir(screenshots, { recursive: true });
const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox"] });
const problems = [];
try {
    for (const named of pages) {
        const [, status, url] = /^(?:(\d{3})=)?(.*)$/.exec(named);
        const expected = Number(status ?? 200);
        const views = widths.flatMap((width) => schemes.map((scheme) => check(url, expected, width, scheme)));
        // Together, since the server may take long to fail.
        await Promise.all([checkWithoutScript(url, expected), ...views]);
    }
} finally {
    await browser.close();
}
for (const problem of problems) {
    console.log(problem);
}
console.log(`checked ${pages.length * widths.length * schemes.length} views, ${problems.length} problems`);
process.exit(problems.length === 0 ? 0 : 1);

async function check(url, expected, width, scheme) {
    // The content security policy of the pages would refuse axe-core, too.
    const context = await browser.newContext({
        viewport: { width, height: 900 },
        colorScheme: scheme,
        bypassCSP: true,
    });
    try {
        const page = await context.newPage();
        await page.addInitScript(markLive);
        const report = (what) => problems.push(`${url} at ${width}, ${scheme}: ${what}`);
        page.on("pageerror", (error) => report(`script failed: ${error}`));
        page.on("console", (message) => {
            const isExpected = expected !== 200 && message.location().url === url;
            if (message.type() === "error" && !isExpected) {
                report(`logged: ${message.text()}`);
            }
        });
        page.on("request", (request) => {
            if (new URL(request.url()).origin !== new URL(url).origin) {
                report(`loads ${request.url()}`);
            }
        });
        // Not until the network is idle: the stream of events never ends.
        await page.goto(url, { waitUntil: "load" });
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
        if (overflow > 0) {
            report(`is ${overflow} pixels too wide`);
        }
        // The first event replaces every part.
        const isReplaced = () => !document.querySelector("[data-live] .stale");
        await page.waitForFunction(isReplaced, null, { timeout: 20_000 }).catch(() => report("is not live"));
        await checkFocus(page, report);
        await page.evaluate(axe);
        const { violations } = await page.evaluate(() => window.axe.run());
        for (const { id, help, nodes } of violations) {
            report(`${id}: ${help}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`);
        }
        await page.evaluate(() => document.activeElement?.blur());
        const name = `${expected === 200 ? "" : expected}${new URL(url).pathname.replaceAll("/", "_").slice(0, 40)}-${width}-${scheme}.png`;
        await page.screenshot({ path: join(screenshots, name), fullPage: true });
        // The part that is seen without scrolling.
        await page.evaluate(() => window.scrollTo(0, 0));
        await page.screenshot({ path: join(screenshots, `top${name}`) });
    } finally {
        await context.close();
    }
}

// Runs in the page, before its scripts: marks what an event is to replace.
function markLive() {
    addEventListener("DOMContentLoaded", () => {
        for (const part of document.querySelectorAll("[data-live] > [id]")) {
            part.append(Object.assign(document.createElement("i"), { className: "stale" }));
        }
    });
}

// Reaches each link and field with the keyboard, and sees where it is.
async function checkFocus(page, report) {
    const expected = await page.evaluate(
        () => [...document.querySelectorAll("a[href], button, input, select, summary")].filter((e) => e.checkVisibility()).length,
    );
    const reached = new Set();
    for (let presses = 0; presses < expected + 20; presses++) {
        await page.keyboard.press("Tab");
        const focused = await page.evaluate(() => {
            const element = document.activeElement;
            if (element === document.body || !element) {
                return null;
            }
            element.dataset.reached ??= String(Math.random());
            const style = getComputedStyle(element);
            const marked = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
            return { id: element.dataset.reached, text: element.outerHTML.slice(0, 80), marked };
        });
        if (!focused) {
            break;
        }
        if (!focused.marked) {
            report(`does not show the focus of ${focused.text}`);
        }
        reached.add(focused.id);
    }
    if (reached.size < expected) {
        report(`has ${expected} links and fields, of which the keyboard reaches ${reached.size}`);
    }
}

async function checkWithoutScript(url, expected) {
    const context = await browser.newContext({ javaScriptEnabled: false });
    try {
        const page = await context.newPage();
        const response = await page.goto(url, { waitUntil: "load" });
        if (response.status() !== expected) {
            problems.push(`${url}: HTTP ${response.status()}`);
        }
        const rows = await page.locator("table tbody tr").count();
        if (rows === 0 && expected === 200) {
            problems.push(`${url} without JavaScript: no table has a row`);
        }
    } finally {
        await context.close();
    }
}
