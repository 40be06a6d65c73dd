import { setTimeout as sleep } from 'node:timers/promises'
import { Command, InvalidArgumentError } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { type LineProcess, Rig } from '../bench/rig.ts'
import { takeDownOnInterrupt } from '../lab/interrupts.ts'
import { Lab } from '../lab/lab.ts'
import { serverAddress } from '../lab/topology.ts'
import { adminPage, metricIn, type Part, sample } from '../soak/probe.ts'
import type { Open, Run } from './client.ts'
import {
  type Crowd,
  type Member,
  type Moment,
  type Replica,
  summarize,
  worstOf,
  wrongWith,
} from './figures.ts'

const processes = 4
const lookEveryMs = 1_000
const quietDeadlineMs = 30_000

interface Options {
  sidecars: number
  seconds: number
  rest: number
  seed: number
  json: boolean
}

interface Joined {
  upMs: number
  again: number
}

interface Result extends Crowd {
  sidecars: number
  seconds: number
  /** Until all had their channel, who came all at once; and how many attempts were in vain meanwhile. */
  joined: Joined
  replicas: Replica[]
  wrong: string[]
}

async function look(lab: Lab, part: Part): Promise<Moment> {
  const pause = metricIn(await adminPage(lab, part, '/metrics'), 'edgemesh_event_loop_longest_pause_seconds')
  const { rssKb, fds, sessions, connections } = await sample(lab, part, 0)
  return { rssMb: rssKb / 1_024, fds, channels: sessions, pairs: connections, pauseMs: pause * 1_000 }
}

/** Looks at all replicas time and again, until `done` is settled and once more. */
async function watch<T>(lab: Lab, parts: readonly Part[], seen: Moment[][], done: Promise<T>): Promise<T> {
  let over = false
  const settled = done.finally(() => {
    over = true
  })
  settled.catch(() => undefined) // told to the caller below
  while (!over) {
    seen.push(await Promise.all(parts.map((part) => look(lab, part))))
    await Promise.race([settled, sleep(lookEveryMs)])
  }
  return settled
}

async function untilQuiet(lab: Lab, parts: readonly Part[], joined: readonly Moment[]): Promise<Moment[]> {
  for (const until = performance.now() + quietDeadlineMs; ; await sleep(500)) {
    const now = await Promise.all(parts.map((part) => look(lab, part)))
    const quiet = now.every((m, i) => m.pairs === 0 && m.fds <= (joined[i]?.fds ?? 0))
    if (quiet || performance.now() > until) return now
  }
}

async function crowd(lab: Lab, { sidecars, seconds, rest, seed }: Options): Promise<Result> {
  const rig = await Rig.in(lab)
  say(`${sidecars} pods with their tokens`)
  const pods = await rig.fakePods('crowd', sidecars)
  const parts = lab.replicas.map((r): Part => ({ ...r, where: 'mkmaster1', kind: 'server' }))
  const empty = await Promise.all(parts.map((part) => look(lab, part)))
  const seen: Moment[][] = []
  const [server, ...replicas] = lab.replicas.map((r) => ({ host: serverAddress, port: r.port }))
  if (server === undefined) throw new Error('Cannot dial: the lab has no server.')
  say('all of them connect at once, from behind one NAT')
  const clients = Array.from({ length: processes }, (_, i) => {
    const client = rig.script('mkedge3', 'test/crowd/client.ts')
    const own = pods.filter((_pod, at) => at % processes === i)
    const everybody = pods.map((p) => p.uid)
    const trustBundleFile = `${lab.folder}/server/ca.crt`
    client.send({
      server,
      replicas,
      trustBundleFile,
      pods: own,
      everybody,
      seed: seed * 100 + i,
    } satisfies Open)
    return client
  })
  const ups = await watch(lab, parts, seen, nextOfAll<Joined>(clients))
  const joined = await Promise.all(parts.map((part) => look(lab, part)))
  say(`they dial each other for ${seconds} s`)
  for (const client of clients) client.send({ seconds, restMs: rest } satisfies Run)
  const members = (await watch(lab, parts, seen, nextOfAll<Member[]>(clients))).flat()
  const after = await untilQuiet(lab, parts, joined)
  for (const client of clients) client.end()
  const figures = parts.flatMap(({ name }, i): Replica[] => {
    const [before, then, now] = [empty[i], joined[i], after[i]]
    if (before === undefined || then === undefined || now === undefined) return []
    return [
      { name, empty: before, joined: then, worst: worstOf(seen.flatMap((all) => all[i] ?? [])), after: now },
    ]
  })
  const sum = summarize(members, seconds)
  const all = { upMs: Math.max(...ups.map((u) => u.upMs)), again: ups.reduce((n, u) => n + u.again, 0) }
  return { sidecars, seconds, joined: all, ...sum, replicas: figures, wrong: wrongWith(sum, figures) }
}

function nextOfAll<T>(clients: readonly LineProcess[]): Promise<T[]> {
  return Promise.all(clients.map((client) => client.next<T>()))
}

function say(step: string): void {
  process.stderr.write(`  … ${step}\n`)
}

function print({
  sidecars,
  seconds,
  joined,
  dials,
  perSecond,
  failed,
  failures,
  share,
  latencyMs,
  replicas,
  wrong,
}: Result): void {
  console.log(`
  ${sidecars} sidecars behind one NAT, two replicas, ${seconds} s
  connected     all after ${joined.upMs} ms, ${joined.again} attempts in vain
  dials         ${dials}, ${perSecond} a second; ${failed} failed
  per sidecar   min ${share.min}, median ${share.median}, max ${share.max}; Jain's index ${share.jain.toFixed(4)}
  latency       median ${latencyMs.median} ms, p99 ${latencyMs.p99}, max ${latencyMs.max}; slowest sidecar's median ${latencyMs.slowestMedian}
`)
  for (const { name, empty, joined: then, worst, after } of replicas) {
    const row = (what: string, read: (m: Moment) => number) =>
      `${what} ${[empty, then, worst, after].map((m) => Math.round(read(m))).join(' / ')}`
    const cells = [
      row('rss MB', (m) => m.rssMb),
      row('fds', (m) => m.fds),
      row('channels', (m) => m.channels),
    ]
    console.log(
      `  ${name.padEnd(9)} ${cells.join('   ')}   pairs at most ${worst.pairs}   longest pause ${Math.round(worst.pauseMs)} ms`,
    )
  }
  console.log('            (empty / all connected / at the worst / after the dials)\n')
  for (const why of new Set(failures)) console.log(`  failed: ${why}`)
  console.log(wrong.length === 0 ? '  PASS' : wrong.map((why) => `  FAIL: ${why}`).join('\n'))
}

async function main(options: Options): Promise<void> {
  const name = `crowd-${process.pid}`
  using _interrupts = takeDownOnInterrupt(() => Lab.down(name))
  try {
    const lab = await Lab.up({ name, replicas: 2, bundled: true, onProgress: say })
    const result = await crowd(lab, options)
    if (options.json) console.log(JSON.stringify({ ...result, pass: result.wrong.length === 0 }))
    else print(result)
    process.exitCode = result.wrong.length === 0 ? 0 : 1
  } finally {
    await Lab.down(name)
  }
}

function wholeFrom(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (Number.isInteger(value) && value >= least && value <= most) return value
    throw new InvalidArgumentError(`Give a whole number from ${least} to ${most}.`)
  }
}

const program = new Command('npm run crowd --')
  .description('Sidecars behind one NAT that dial each other at random through two replicas of the server.')
  .option('--sidecars <number>', 'how many', wholeFrom(processes, 5_000), 1_000)
  .option('--seconds <number>', 'how long they dial', wholeFrom(1, 600), 30)
  .option(
    '--rest <ms>',
    'from the end of a dial to the next of the same sidecar',
    wholeFrom(1, 60_000),
    3_000,
  )
  .option('--seed <number>', 'of who dials whom', wholeFrom(1, 1_000_000), 1)
  .option('--json', 'prints one JSON object', false)
  .action(main)

try {
  await program.parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}
