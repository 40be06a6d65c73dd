import { cpus, release } from 'node:os'
import { Command } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { Lab } from '../lab/lab.ts'

/** One figure of ours against the same by plain sockets in the same namespaces, in turn within each round. */
interface Case {
  case: string
  metric: string
  peerName: string
  ours: (lab: Lab) => Promise<number>
  peer: (lab: Lab) => Promise<number>
}

const seconds = 3
const relayPort = 5_299

const cases: Case[] = [
  bulk('direct-up', 'edge', 'tcp-echo-edge', []),
  bulk('direct-down', 'edge', 'tcp-echo-edge', ['-R']),
  bulk('relayed-up', 'cloud', undefined, []),
  bulk('relayed-down', 'cloud', undefined, ['-R']),
]

/** iperf3 to a service, against iperf3 to the pod itself, or, where only the relay leads there, to the relay's node. */
function bulk(name: string, service: string, pod: string | undefined, flags: string[]): Case {
  return {
    case: name,
    metric: 'Gbit/s',
    peerName: pod === undefined ? 'plain sockets to the relay’s node (one of two legs)' : 'plain sockets',
    ours: (lab) => iperf(lab, service, 5_201, flags),
    peer: (lab) =>
      pod === undefined
        ? iperf(lab, '203.0.113.10', relayPort, flags)
        : iperf(lab, lab.pod(pod).ips[0], 5_201, flags),
  }
}

async function iperf(lab: Lab, host: string, port: number, flags: string[]): Promise<number> {
  const argv = ['iperf3', '-4', '-J', '-c', host, '-p', String(port), '-t', String(seconds), ...flags]
  const { stdout } = await lab.run('client', argv, { timeoutMs: 30_000 })
  const result = JSON.parse(stdout) as {
    error?: string
    end?: { sum_received?: { bits_per_second: number } }
  }
  const bits = result.end?.sum_received?.bits_per_second
  if (bits === undefined) throw new Error(`iperf3 to ${host}: ${result.error}`)
  return bits / 1e9
}

interface Result {
  case: string
  metric: string
  ours: number
  peer: number
  peerName: string
  ratio: { median: number; min: number; max: number }
}

async function measure(
  lab: Lab,
  chosen: Case,
  rounds: number,
  onRound: (round: number) => void,
): Promise<Result> {
  const pairs: { ours: number; peer: number }[] = []
  for (let round = 1; round <= rounds; round++) {
    onRound(round)
    pairs.push({ ours: await chosen.ours(lab), peer: await chosen.peer(lab) })
  }
  const ratios = pairs.map(({ ours, peer }) => ours / peer).sort((a, b) => a - b)
  return {
    case: chosen.case,
    metric: chosen.metric,
    ours: round(median(pairs.map((p) => p.ours))),
    peer: round(median(pairs.map((p) => p.peer))),
    peerName: chosen.peerName,
    ratio: { median: round(median(ratios)), min: round(ratios[0] ?? 0), max: round(ratios.at(-1) ?? 0) },
  }
}

async function bench(names: string[], options: { rounds: string; json: boolean }): Promise<void> {
  const rounds = Number(options.rounds)
  if (!(Number.isInteger(rounds) && rounds > 0))
    throw new Error(`Cannot run "${options.rounds}" rounds: give a number.`)
  const unknown = names.find((n) => !cases.some((c) => c.case === n))
  if (unknown !== undefined)
    throw new Error(`Cannot run "${unknown}": the cases are ${cases.map((c) => c.case).join(', ')}.`)
  const name = `bench-${process.pid}`
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => void Lab.down(name).finally(() => process.exit(130)))
  }
  const machine = `${cpus().length} x ${cpus()[0]?.model.trim()}, Linux ${release()}, Node ${process.version}`
  const results: Result[] = []
  try {
    const lab = await Lab.up({ name })
    for (const pod of ['tcp-echo-edge', 'tcp-echo-cloud'])
      lab.spawn(pod, ['iperf3', '-s', '-p', '5201'], { stdio: 'ignore' })
    lab.spawn('mkmaster1', ['iperf3', '-s', '-p', String(relayPort)], { stdio: 'ignore' })
    for (const chosen of cases.filter((c) => names.length === 0 || names.includes(c.case))) {
      const result = await measure(lab, chosen, rounds, (n) =>
        process.stderr.write(`${chosen.case}: round ${n} of ${rounds}\n`),
      )
      results.push(result)
    }
  } finally {
    await Lab.down(name)
  }
  if (options.json) console.log(JSON.stringify({ machine, cases: results }))
  else print(machine, results)
}

function print(machine: string, results: Result[]): void {
  console.log(`${machine}; medians of rounds\n`)
  for (const r of results) {
    const ratio = `${r.ratio.median} (${r.ratio.min} to ${r.ratio.max})`
    console.log(
      `${r.case.padEnd(14)} ours ${String(r.ours).padStart(6)} ${r.metric}   peer ${String(r.peer).padStart(6)}   ratio ${ratio}   ${r.peerName}`,
    )
  }
}

function median(numbers: number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? 0
}

function round(number: number): number {
  return Math.round(number * 1_000) / 1_000
}

const program = new Command('npm run bench --')
  .description('Measures in a lab, against plain sockets in the same namespaces and round.')
  .argument('[cases...]', `which: ${cases.map((c) => c.case).join(', ')}; default all`)
  .option('--rounds <number>', 'how many rounds', '3')
  .option('--json', 'prints one JSON object', false)
  .action(bench)

try {
  await program.parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}
