// New connections to an echo, one after the other: `node attempts.ts HOST PORT PACE_MS SECONDS`. Prints {startMs,
// firstByteMs, echoed} of each as it ends; `stop` on standard input ends it early, after the connection at hand.
import { lookup } from 'node:dns/promises'
import { connect } from 'node:net'
import { setTimeout } from 'node:timers/promises'

const [host = '', port = '', paceMs = '', seconds = ''] = process.argv.slice(2)
const sentence = 'is anybody out there?'
const deadlineMs = 15_000
const begun = performance.now()
let stopped = false
process.stdin.on('data', () => {
  stopped = true
})
process.stdin.on('end', () => process.exit(0))

/** Ends after both FINs, so that the sidecar's access lines come in the order of the connections. */
async function attempt(): Promise<object> {
  const started = performance.now()
  const { address } = await lookup(host, { family: 4 })
  const socket = connect({ host: address, port: Number(port), noDelay: true })
  const { promise, resolve } = Promise.withResolvers<void>()
  let firstByteMs: number | null = null
  let text = ''
  socket.setTimeout(deadlineMs, () => socket.destroy())
  socket.once('connect', () => socket.write(`${sentence}\n`))
  socket.on('data', (chunk) => {
    firstByteMs ??= round(performance.now() - started)
    text += chunk
    if (text.includes(sentence)) socket.end()
  })
  socket.once('error', () => resolve())
  socket.once('close', () => resolve())
  await promise
  return { startMs: round(started - begun), firstByteMs, echoed: text.includes(sentence) }
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10
}

while (!stopped && performance.now() - begun < Number(seconds) * 1_000) {
  const started = performance.now()
  console.log(JSON.stringify(await attempt()))
  if (!stopped) await setTimeout(Math.max(0, Number(paceMs) - (performance.now() - started)))
}
process.exit(0)
