import { cpus, release, totalmem } from 'node:os'
import { Command, InvalidArgumentError } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { takeDownOnInterrupt } from '../lab/interrupts.ts'
import { Lab } from '../lab/lab.ts'
import type { BenchCase, Trial } from './case.ts'
import { channelCases } from './cases/channels.ts'
import { dnsCases } from './cases/dns.ts'
import { memoryCases } from './cases/memory.ts'
import { passthroughCases } from './cases/passthrough.ts'
import { relayCases } from './cases/relay.ts'
import { rttCases } from './cases/rtt.ts'
import { tunnelCases } from './cases/tunnel.ts'
import { limit, type Round, type Row, summarize } from './figures.ts'
import { Rig } from './rig.ts'

const cases: readonly BenchCase[] = [
  ...tunnelCases,
  ...passthroughCases,
  ...relayCases,
  ...rttCases,
  ...dnsCases,
  ...memoryCases,
  ...channelCases,
]

interface Options {
  rounds: number
  json: boolean
  cpuProf?: string
}

/** Measures a case round by round, ours and the peer in turn. */
async function measure(chosen: BenchCase, trial: Trial, wanted: number): Promise<Row[]> {
  const rounds: Round[] = []
  const count = Math.min(wanted, chosen.maxRounds ?? wanted)
  for (let i = 1; i <= count; i++) {
    process.stderr.write(`${chosen.name}: round ${i} of ${count}\n`)
    const peer = trial.peer ?? (async () => trial.limits ?? {})
    // Who goes first alternates: what a first run leaves behind must not always be to the same one's cost.
    const first = i % 2 === 1 ? trial.ours : peer
    const [one, other] = [await first(), await (first === peer ? trial.ours : peer)()]
    rounds.push(first === peer ? { ours: other, peer: one } : { ours: one, peer: other })
  }
  return chosen.figures.map((figure) => summarize(chosen.name, chosen.peerName, figure, rounds))
}

/** Runs the cases in as few labs as they need. */
async function bench(names: string[], options: Options): Promise<void> {
  const chosen = cases.filter((c) => names.length === 0 || names.some((n) => c.name.startsWith(n)))
  const unknown = names.find((n) => !cases.some((c) => c.name.startsWith(n)))
  if (unknown !== undefined)
    throw new Error(`Cannot run "${unknown}": the cases are ${cases.map((c) => c.name).join(', ')}.`)
  const nodeFlags = options.cpuProf === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${options.cpuProf}`]
  const rows: Row[] = []
  const failed: string[] = []
  for (const rttMs of new Set(chosen.map((c) => c.rttMs))) {
    const name = `bench-${process.pid}-${rttMs}`
    using _interrupts = takeDownOnInterrupt(() => Lab.down(name))
    try {
      const rig = await Rig.in(await Lab.up({ name, rttMs, bundled: true, nodeFlags }))
      for (const one of chosen.filter((c) => c.rttMs === rttMs)) {
        try {
          const measured = await measure(one, await one.prepare(rig), options.rounds)
          rows.push(...measured)
          if (!options.json) print(one, measured)
        } catch (error) {
          failed.push(one.name) // the others can still be measured
          console.error(`${one.name}: ${sentenceOf(error)}`)
        }
      }
      // A profile is written by a process that ends by itself.
      if (nodeFlags.length > 0)
        await Promise.all([
          ...rig.lab.pods.filter((p) => p.sidecar).map((p) => rig.lab.stopSidecar(p.name)),
          rig.lab.stopServer(),
        ])
    } finally {
      await Lab.down(name)
    }
  }
  if (options.json) console.log(JSON.stringify({ machine: machine(), cases: rows, failed }))
  else printEnd(rows)
  if (failed.length > 0) throw new Error(`Could not be measured: ${failed.join(', ')}.`)
}

function machine(): string {
  const memory = Math.round(totalmem() / 2 ** 30)
  return `${cpus().length} x ${cpus()[0]?.model.trim()}, ${memory} GiB, Linux ${release()}, Node ${process.version}`
}

function print(one: BenchCase, rows: readonly Row[]): void {
  console.log(`\n${one.name}: ${one.what}; peer: ${one.peerName}`)
  for (const { metric, unit, ours, peer, ratio, least, aim, pass } of rows) {
    const bounds = least === null ? '' : `least ${least}${aim === null ? '' : `, aim ${aim}`}`
    const verdict = pass === null ? '' : pass ? colour(32, 'pass') : colour(31, 'MISS')
    const sides = `${String(ours).padStart(8)} : ${String(peer).padEnd(8)} ${unit.padEnd(9)}`
    const spread = one.peerName === limit ? '' : ` (${ratio.min} to ${ratio.max})`
    console.log(`  ${metric.padEnd(10)}${sides} ratio ${ratio.median}${spread}  ${bounds} ${verdict}`)
  }
}

function printEnd(rows: readonly Row[]): void {
  const missed = rows.filter((r) => r.pass === false)
  console.log(`\n${machine()}; medians of rounds, ours : peer`)
  console.log(
    missed.length === 0
      ? 'every case shows the least that it must'
      : `missed: ${missed.map((r) => `${r.case} ${r.metric}`).join(', ')}`,
  )
}

function colour(code: number, text: string): string {
  return process.stdout.isTTY ? `\u001b[${code}m${text}\u001b[39m` : text
}

function parseRounds(text: string): number {
  const rounds = Number(text)
  if (Number.isInteger(rounds) && rounds > 0 && rounds <= 100) return rounds
  throw new InvalidArgumentError('Give a number from 1 to 100.')
}

const program = new Command('npm run bench --')
  .description('Measures in a lab, against a peer in the same namespaces and in turn within each round.')
  .argument(
    '[cases...]',
    `which, also by a common beginning; default all: ${cases.map((c) => c.name).join(', ')}`,
  )
  .option('--rounds <number>', 'how many rounds', parseRounds, 5)
  .option('--cpu-prof <folder>', 'writes profiles of our processes; the folder must be writable for all')
  .option('--json', 'prints one JSON object', false)
  .action(bench)

try {
  await program.parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}
