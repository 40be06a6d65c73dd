import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { dnsAddress } from '../../lab/topology.ts'
import type { BenchCase, Trial } from '../case.ts'
import { limit, quantile } from '../figures.ts'

const seconds = 4
const names = ['edge', 'cloud', 'tcp-echo-edge', 'tcp-echo-cloud']

export const dnsCases: readonly BenchCase[] = [
  {
    name: 'dns',
    what: 'names of the catalogue, by UDP to the resolver of one pod',
    peerName: limit,
    rttMs: 0,
    figures: [
      { metric: 'rate', unit: 'q/s', better: 'higher', least: 1 },
      { metric: 'p99', unit: 'ms', better: 'lower', least: 1 },
      { metric: 'cpu', unit: 'µs/query', better: 'lower' },
    ],
    async prepare(rig): Promise<Trial> {
      const { lab } = rig
      const [queries, said] = ['queries', 'dnsperf'].map((name) => join(rig.folder, name)) as [string, string]
      const all = names.flatMap((name) =>
        ['A', 'AAAA'].map((type) => `${name}.default.svc.cluster.local ${type}`),
      )
      writeFileSync(queries, `${all.join('\n')}\n`)
      const dnsperf = async (...flags: string[]) => {
        const argv = ['dnsperf', '-f', 'inet', '-s', dnsAddress, '-d', queries, '-l', String(seconds)]
        // Into a file: a line for each answer by a pipe would have it wait for us, and the answers for it.
        const { stderr } = await lab.run(
          'client',
          ['sh', '-c', '"$@" > "$0"', said, ...argv, '-c', '8', '-T', '1', ...flags],
          { timeoutMs: 60_000 },
        )
        const stdout = readFileSync(said, 'utf8')
        const rate = Number(/Queries per second:\s+([\d.]+)/.exec(stdout)?.[1])
        const lost = Number(/Queries lost:\s+(\d+)/.exec(stdout)?.[1])
        if (!(rate > 0) || lost > 0 || !/NOERROR \d+ \(100/.test(stdout))
          throw new Error(`dnsperf: ${lost} lost; ${stderr}${stdout.slice(-1_500)}`)
        const times = [...stdout.matchAll(/^> NOERROR \S+ \S+ ([\d.]+)$/gm)].map((m) => Number(m[1]) * 1e3)
        return { rate, times }
      }
      const meter = rig.meter('client')
      return {
        async ours() {
          const before = meter.cpuSeconds
          const { rate } = await dnsperf('-q', '64')
          const cpu = ((meter.cpuSeconds - before) / (rate * seconds)) * 1e6
          const paced = await dnsperf('-q', '64', '-v', '-Q', '10000')
          return { rate, p99: quantile(paced.times, 0.99), cpu }
        },
        limits: { rate: 15_000, p99: 5, cpu: 1e6 / 15_000 },
      }
    },
  },
]
