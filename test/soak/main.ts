import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { Command, InvalidArgumentError } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { ports } from '#shared/ports.ts'
import { LineProcess } from '../bench/rig.ts'
import { takeDownOnInterrupt } from '../lab/interrupts.ts'
import { Lab } from '../lab/lab.ts'
import { adminPage, type Part, routesIn, sample } from './probe.ts'
import { type Result, report } from './report.ts'
import {
  type Bounds,
  boundsFor,
  isAtRest,
  judge,
  type Sample,
  type Series,
  type Traffic,
  verdict,
} from './verdict.ts'

const port = 8080
const sampleEveryMs = 5_000
/**
 * Traffic before anything is judged: every route is opened, every worker started, and V8's heap of a busy sidecar grows from
 * 12 to 14 MB in the first three minutes, at which it stays; so do the buffers that the allocator keeps.
 */
const warmUpMs = 180_000
const restDeadlineMs = 60_000
const churnEveryMs = 1_000

/** Who talks to whom, and the way that its connections go in the end. */
const loads = [
  { from: 'a', to: 'near', route: 'direct' },
  { from: 'a', to: 'b', route: 'punched' },
  { from: 'a', to: 'c', route: 'relayed' },
] as const

interface Options {
  minutes: number
  seed: number
  churn: boolean
  json: boolean
}

/** Two sites behind plain NATs, a third behind a symmetric one, and the cloud with two replicas of the server. */
async function makeLab(name: string): Promise<Lab> {
  const natSites = [
    { name: 'a', nat: 'port' },
    { name: 'b', nat: 'port' },
    { name: 'c', nat: 'symmetric' },
  ] as const
  const lab = await Lab.up({ name, replicas: 2, bundled: true, natSites, onProgress: say })
  await lab.addPod({ name: 'near', node: 'mkedge-a' })
  lab.setService('near', ['near'], [port])
  for (const { to } of loads) {
    const server = lab.spawn(to, lab.node('test/conformance/server.ts', '::', String(port)))
    if (server.stdout === null) throw new Error('Cannot hear what the traffic server says.')
    await once(server.stdout, 'data')
    server.stdout.resume() // what it says of each connection is for others
  }
  return lab
}

function partsOf(lab: Lab): Part[] {
  const { sidecarAdmin: adminPort } = ports
  return [
    ...lab.pods.map(({ name }): Part => ({ name, where: name, adminPort, kind: 'sidecar' })),
    ...lab.replicas.map((r): Part => ({ ...r, where: 'mkmaster1', kind: 'server' })),
  ]
}

async function sampleAll(lab: Lab, parts: readonly Part[]): Promise<Sample[]> {
  const now = performance.now()
  return Promise.all(parts.map((part) => sample(lab, part, now)))
}

/** The figures once all is at rest, or as they are at the deadline. */
async function rest(
  lab: Lab,
  parts: readonly Part[],
  before: readonly Sample[],
  bounds: Bounds,
): Promise<Sample[]> {
  for (const until = performance.now() + restDeadlineMs; ; await sleep(1_000)) {
    const now = await sampleAll(lab, parts)
    const resting = now.every((s, i) => isAtRest(s, before[i], bounds))
    if (resting || performance.now() > until) return now
  }
}

/** Runs the traffic for so long; `meanwhile` is called every few seconds. */
async function carry(
  lab: Lab,
  seed: number,
  forMs: number,
  meanwhile: () => Promise<void>,
): Promise<Map<string, Traffic>> {
  const running = loads.map(({ from, to, route }, i) => {
    const argv = lab.node('test/soak/load.ts', to, String(port), String(seed * 10 + i))
    const name = `${from} to ${to} (${route})`
    return { name, load: new LineProcess(lab.spawn(from, argv), name) }
  })
  const until = performance.now() + forMs
  while (performance.now() < until) {
    await sleep(Math.min(sampleEveryMs, until - performance.now()))
    await meanwhile()
  }
  for (const { load } of running) load.send('stop')
  const done = running.map(async ({ name, load }) => [name, await load.next<Traffic>()] as const)
  return new Map(await Promise.all(done))
}

/** Changes the endpoints of the service next door all the time: they are here, there, and both. */
function startChurn(lab: Lab): () => void {
  const sets = [['near', 'b'], ['b'], ['near', 'b'], ['near']]
  let turn = 0
  const timer = setInterval(
    () => lab.setService('near', sets[turn++ % sets.length] ?? [], [port]),
    churnEveryMs,
  )
  return () => {
    clearInterval(timer)
    lab.setService('near', ['near'], [port])
  }
}

async function soak(lab: Lab, { minutes, seed, churn }: Options): Promise<Result> {
  const parts = partsOf(lab)
  const bounds = boundsFor(minutes)
  const routesNow = async () => routesIn(await adminPage(lab, partNamed(parts, 'a'), '/metrics'))
  const stopChurn = churn ? startChurn(lab) : () => undefined
  say(`warm-up for ${warmUpMs / 60_000} min: every route is opened, and heaps grow to their size`)
  await carry(lab, seed + 1, warmUpMs, async () => undefined)
  const before = await rest(lab, parts, [], bounds)
  const routesBefore = await routesNow()
  say(`traffic for ${minutes} min`)
  const during: Sample[][] = []
  const traffic = await carry(lab, seed, minutes * 60_000, async () => {
    during.push(await sampleAll(lab, parts))
  })
  stopChurn()
  say('at rest')
  const after = await rest(lab, parts, before, bounds)
  const routes = Object.entries(await routesNow()).map(([route, n]) => [
    route,
    n - (routesBefore[route] ?? 0),
  ])
  const series = parts.flatMap(({ name }, i): Series[] => {
    const [first, last] = [before[i], after[i]]
    if (first === undefined || last === undefined) return []
    return [{ part: name, before: first, after: last, during: during.flatMap((all) => all[i] ?? []) }]
  })
  const rows = series.flatMap((one) => judge(one, bounds))
  const counts = Object.fromEntries(routes)
  return { minutes, seed, churn, rows, traffic, routes: counts, wrong: verdict(rows, traffic, counts) }
}

function partNamed(parts: readonly Part[], name: string): Part {
  const part = parts.find((p) => p.name === name)
  if (part === undefined) throw new Error(`Cannot watch ${name}: there is no such part.`)
  return part
}

function say(step: string): void {
  process.stderr.write(`  … ${step}\n`)
}

async function main(options: Options): Promise<void> {
  const name = `soak-${process.pid}`
  using _interrupts = takeDownOnInterrupt(() => Lab.down(name))
  try {
    const result = await soak(await makeLab(name), options)
    console.log(report(result, options.json))
    process.exitCode = result.wrong.length === 0 ? 0 : 1
  } finally {
    await Lab.down(name)
  }
}

function numberFrom(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (value >= least && value <= most) return value
    throw new InvalidArgumentError(`Give a number from ${least} to ${most}.`)
  }
}

const program = new Command('npm run soak --')
  .description('Mixed traffic on every route for minutes: memory, descriptors and sessions must not grow.')
  .option('--minutes <number>', 'how long', numberFrom(0.5, 1_440), 10)
  .option('--seed <number>', 'of the traffic', numberFrom(1, 1_000_000), 1)
  .option('--churn', 'endpoints change every second meanwhile', false)
  .option('--json', 'prints one JSON object', false)
  .action(main)

try {
  await program.parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}
