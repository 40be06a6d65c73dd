// `node await-ok.ts URL SECONDS [CA]`: ends as soon as the URL answers 200. A program, as it has to run in a network
// namespace of the cluster: `node` is started once there, not for every attempt.
import { readFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { setTimeout as delay } from 'node:timers/promises'

const attemptMs = 2_000
const [url = '', seconds = '', caFile] = process.argv.slice(2)
const ca = caFile === undefined ? {} : { ca: readFileSync(caFile) }

/** The status, or why there is none. */
function ask(): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>()
  const module = url.startsWith('https:') ? https : http
  const request = module.get(url, { agent: false, timeout: attemptMs, ...ca }, (response) => {
    response.resume()
    resolve(String(response.statusCode))
  })
  request.once('timeout', () => request.destroy(new Error(`no answer in ${attemptMs} ms`)))
  request.once('error', (error) => resolve(error.message))
  return promise
}

for (const until = Date.now() + Number(seconds) * 1_000; ; await delay(50)) {
  const answer = await ask()
  if (answer === '200') break
  if (Date.now() > until) {
    console.error(`${url} after ${seconds} s: ${answer}`)
    process.exit(1)
  }
}
