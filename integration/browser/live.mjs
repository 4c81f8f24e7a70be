// Opens the page of a build in progress in a real browser, without JavaScript, too. Then another call is made, and the
// page has to show it without being loaded again, by one request each 2 s while it is visible. The clock of the page is
// this script's.
//
//   node live.mjs BROWSER URL BEFORE
//
// Prints a line once the pages show the text BEFORE. A line of input is the text that they have to show next.

import { once } from "node:events";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

const [browserPath, url, before] = process.argv.slice(2);
const patience = { timeout: 20_000 };

const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox"] });
try {
    const [page, still] = await Promise.all([open({}), open({ javaScriptEnabled: false })]);
    console.log("open");
    const [after] = await once(createInterface({ input: process.stdin }), "line");
    await checkLive(page, after);
    expect(await shows(still, before), "changed without JavaScript");
    await still.reload();
    expect(await shows(still, after), "without JavaScript does not show the call when loaded again");
} finally {
    await browser.close();
}
// Input that is still open would keep the process.
process.exit(0);

async function open(options) {
    const context = await browser.newContext({ viewport: { width: 360, height: 500 }, ...options });
    const page = await context.newPage();
    if (options.javaScriptEnabled !== false) {
        await page.clock.install({ time: 0 });
        await page.clock.pauseAt(1000);
    }
    await page.goto(url, { waitUntil: "load" });
    expect(await shows(page, before), `does not show ${before}`);
    return page;
}

async function checkLive(page, after) {
    let requests = 0;
    page.on("request", () => { requests += 1; });
    const state = await page.evaluate(() => {
        document.querySelector("nav a").focus();
        window.scrollTo(0, 150);
        window.isSame = true;
        return { scroll: window.scrollY, focused: document.activeElement.outerHTML };
    });
    await page.clock.runFor(1999);
    expect(requests === 0, `made ${requests} requests before 2 s`);
    expect(await shows(page, before), `does not show ${before} after 2 s`);
    await page.clock.runFor(1);
    await page.getByText(after).first().waitFor(patience).catch(() => expect(false, `is not live: no ${after}`));
    const now = await page.evaluate(() => ({
        scroll: window.scrollY,
        focused: document.activeElement.outerHTML,
        isSame: window.isSame,
    }));
    expect(now.isSame, "was loaded again");
    expect(now.scroll === state.scroll, `scrolled from ${state.scroll} to ${now.scroll}`);
    expect(now.focused === state.focused, `moved the focus to ${now.focused}`);
    expect(requests === 1, `made ${requests} requests in 2 s`);

    await hide(page, true);
    await page.clock.runFor(60_000);
    expect(requests === 1, "makes requests in the background");
    const next = page.waitForRequest(url, patience);
    await hide(page, false);
    await page.clock.runFor(2000);
    await next.catch(() => expect(false, "does not go on in the foreground"));
}

async function hide(page, hidden) {
    await page.evaluate((value) => {
        Object.defineProperty(document, "hidden", { value, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
}

async function shows(page, text) {
    return (await page.locator("main").innerText()).includes(text);
}

function expect(condition, otherwise) {
    if (!condition) {
        throw new Error(`${url}: the page ${otherwise}`);
    }
}
