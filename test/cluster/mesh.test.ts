import type { ChildProcess } from 'node:child_process'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { stringify } from 'yaml'
import { inject } from '../../injector/inject.ts'
import type { MeshSettings } from '../../injector/mesh-settings.ts'
import { injectText } from '../../injector/offline.ts'
import type { Container, Pod } from '../../injector/pod.ts'
import { decide } from '../../injector/policy.ts'
import { fromConfigData } from '../../sidecar/shared/mesh-config.ts'
import { cases, goldenMesh } from '../injector/pods.ts'
import { Cluster } from './cluster.ts'
import { nodes } from './layout.ts'
import {
  accessLines,
  loadImages,
  podOf,
  publicPort,
  say,
  simplePod,
  simpleService,
  startLoadBalancer,
} from './mesh.ts'

let cluster: Cluster
let balancer: ChildProcess | undefined
const system = ['-n', 'edgemesh-system']
const patient = { timeout: 60_000, interval: 500 }
const report = (line: string) => process.stderr.write(`  measured: ${line}\n`)
const root = join(import.meta.dirname, '..', '..')
/** The CLI as an administrator runs it, in the cloud's network. */
const cli = (args: string[], input?: string) =>
  cluster.run('cloud', [process.execPath, 'injector/cli/main.ts', ...args], {
    cwd: root,
    timeoutMs: 60_000,
    ...(input === undefined ? {} : { input }),
  })
const check = async () => {
  const { code, stdout } = await cli(['check', '--json', '--kubeconfig', cluster.kubeconfig])
  const { findings } = JSON.parse(stdout) as {
    findings: { check: string; status: string; message: string }[]
  }
  return { code, bad: findings.filter((f) => f.status === 'failure').map((f) => `${f.check}: ${f.message}`) }
}

beforeAll(async () => {
  cluster = await Cluster.up({ log: (step) => process.stderr.write(`${step}\n`) })
  await loadImages(cluster)
  await cluster.mustKubectl('label', 'node', 'edge', 'node-role.kubernetes.io/edge=')
})

afterAll(async () => {
  balancer?.kill('SIGKILL')
  await cluster?.down()
})

const ready = (...args: string[]) => cluster.mustKubectl('wait', '--timeout=170s', ...args)
const sidecarsOf = async (pod: string, namespace = 'default') => {
  const path = '{.spec.initContainers[*].name} {.spec.containers[*].name}'
  return (await cluster.mustKubectl('-n', namespace, 'get', 'pod', pod, '-o', `jsonpath=${path}`))
    .split(' ')
    .filter((name) => name.startsWith('edgemesh-'))
}

describe("the newcomer's path", () => {
  it('applies the base, valid by strict validation', async () => {
    await cluster.mustKubectl('apply', '--validate=strict', '-k', 'manifests/base')
    balancer = await startLoadBalancer(cluster)
    await ready(
      ...system,
      '--for=condition=Available',
      'deployment/edgemesh-server',
      'deployment/edgemesh-injector',
    )
    const mesh = await cluster.mustKubectl(...system, 'get', 'configmap', 'edgemesh-mesh', '-o', 'json')
    const { data } = JSON.parse(mesh) as { data: Record<string, string> }
    expect(data).toMatchObject({
      servers: `${cluster.nodeIP('cloud')}:${publicPort}`,
      serviceCidrs: '10.240.0.0/16',
    })
  })

  it.each(['load-balancer', 'node-port', 'host-network'])('has a valid overlay %s', async (name) => {
    await cluster.mustKubectl(
      'apply',
      '--dry-run=server',
      '--validate=strict',
      '-k',
      `manifests/overlays/${name}`,
    )
  })

  it('meshes the example after one label', async () => {
    await cluster.mustKubectl('label', 'namespace', 'default', 'edgemesh-injection=enabled')
    await cluster.mustKubectl('apply', '--validate=strict', '-k', 'manifests/example')
    await ready('--for=condition=Available', 'deployment/client', 'deployment/tcp-echo-cloud')
    expect(await sidecarsOf(await podOf(cluster, 'client'))).toEqual(['edgemesh-init', 'edgemesh-sidecar'])
  })

  it('answers at the edge from the cloud, by name and by clusterIP, relayed', async () => {
    const client = await podOf(cluster, 'client')
    const ip = await cluster.mustKubectl(
      'get',
      'service',
      'tcp-echo-cloud',
      '-o',
      'jsonpath={.spec.clusterIP}',
    )
    for (const host of ['tcp-echo-cloud', 'tcp-echo-cloud.default.svc.cluster.local', ip])
      expect(await say(cluster, client, host, `hello-${host}`)).toBe(`hello-${host}`)
    const lines = await accessLines(cluster, client)
    expect(lines.map((l) => l.route)).toEqual(['relayed', 'relayed', 'relayed'])
    expect(lines[2]).toMatchObject({ destination: `${ip}:2701`, closeReason: 'closed' })
  })

  it('answers in the cloud from the edge, relayed, and between pods of one node, direct', async () => {
    await cluster.apply([
      simplePod('tcp-echo-edge', 'edge', {}, true),
      simpleService('tcp-echo-edge'),
      simplePod('cloud-client', 'cloud'),
    ])
    await ready('--for=condition=Ready', 'pod/tcp-echo-edge', 'pod/cloud-client')
    await expect.poll(() => say(cluster, 'cloud-client', 'tcp-echo-edge', 'down'), patient).toBe('down')
    const client = await podOf(cluster, 'client')
    expect(await say(cluster, client, 'tcp-echo-edge', 'beside')).toBe('beside')
    expect((await accessLines(cluster, 'cloud-client')).at(-1)).toMatchObject({ route: 'relayed' })
    expect((await accessLines(cluster, client)).at(-1)).toMatchObject({ route: 'direct' })
  })

  it.each(nodes)('leaves the iptables of node %s to kube-proxy and CNI', async (node) => {
    for (const program of ['iptables-legacy-save', 'iptables-nft-save', 'ip6tables-nft-save']) {
      const { code, stdout } = await cluster.run(node, [program])
      expect(code).toBe(0)
      expect(stdout).not.toMatch(/EDGE-MESH|edgemesh (root|services)|40001/)
    }
    expect(
      (await cluster.run(node, ['iptables-legacy-save'])).stdout +
        (await cluster.run(node, ['iptables-nft-save'])).stdout,
    ).toContain('KUBE-SERVICES')
  })
})

describe('the webhook', () => {
  const dryRun = async (pod: object) => {
    const output = await cluster.kubectlWith(
      JSON.stringify(pod),
      'create',
      '--dry-run=server',
      '-o',
      'json',
      '-f',
      '-',
    )
    if (output.code !== 0) throw new Error(output.stderr)
    const made = JSON.parse(output.stdout) as { spec: { initContainers?: { name: string }[] } }
    return {
      injected: (made.spec.initContainers ?? []).some((c) => c.name === 'edgemesh-sidecar'),
      warnings: output.stderr,
    }
  }
  const labels = ['enabled', 'disabled', 'maybe', undefined]
  const asks = ['true', 'false', 'perhaps', undefined]
  const table = labels.flatMap((namespace) => asks.map((pod) => ({ namespace, pod })))
  const expected = (namespace?: string, pod?: string) =>
    pod === 'true' || (pod === undefined && namespace === 'enabled')

  beforeAll(async () => {
    for (const label of labels) {
      const metadata = {
        name: `ns-${label ?? 'none'}`,
        labels: label === undefined ? {} : { 'edgemesh-injection': label },
      }
      await cluster.apply([{ apiVersion: 'v1', kind: 'Namespace', metadata }])
    }
  })

  it.each(table)('namespace $namespace, pod $pod', async ({ namespace, pod }) => {
    const own = pod === undefined ? {} : { 'sidecar.edgemesh.io/inject': pod }
    const metadata = { name: 'p', namespace: `ns-${namespace ?? 'none'}`, labels: own }
    const spec = { containers: [{ name: 'c', image: 'busybox:1.36' }] }
    // A namespace without its service account refuses pods for a moment.
    await expect
      .poll(async () => (await dryRun({ apiVersion: 'v1', kind: 'Pod', metadata, spec })).injected, patient)
      .toBe(expected(namespace, pod))
  })

  describe('makes of golden pods what the function and the CLI make of them', () => {
    let mesh: MeshSettings
    const namespaces: Record<string, string> = {
      enabled: 'ns-enabled',
      disabled: 'ns-disabled',
      on: 'ns-maybe',
    }

    beforeAll(async () => {
      const map = await cluster.mustKubectl(...system, 'get', 'configmap', 'edgemesh-mesh', '-o', 'json')
      mesh = { ...goldenMesh, ...fromConfigData(JSON.parse(map).data) }
    })

    it.each(cases)('$name', async ({ pod, namespaceLabels }) => {
      const namespace = namespaces[namespaceLabels['edgemesh-injection'] ?? ''] ?? 'ns-none'
      const decision = decide({ pod, namespace, namespaceLabels }, mesh)
      const given = { ...pod, metadata: { ...pod.metadata, namespace } }
      const made = await cluster.kubectlWith(
        JSON.stringify(given),
        'create',
        '--dry-run=server',
        '-o',
        'json',
        '-f',
        '-',
      )
      expect(made.stderr.replaceAll(/^Warning:.*\n/gm, '')).toBe('')
      const result = JSON.parse(made.stdout) as Pod
      if (!decision.inject) {
        expect(result.spec.volumes?.some((v) => v.name === 'edgemesh-token') ?? false).toBe(false)
        expect(result.spec.initContainers?.length ?? 0).toBe(pod.spec.initContainers?.length ?? 0)
        return
      }
      const expected = inject(pod, mesh, decision.workload)
      expect(injectText(stringify(pod), 'pod.yaml', mesh).outcomes[0]?.decision).toEqual(
        decide({ pod, namespace: 'default', namespaceLabels: { 'edgemesh-injection': 'enabled' } }, mesh),
      )
      expect(result.metadata.annotations).toMatchObject(expected.metadata.annotations ?? {})
      expect(result.spec.initContainers?.map((c) => c.name)).toEqual(
        expected.spec.initContainers?.map((c) => c.name),
      )
      expect(result.spec.containers.map((c) => c.name)).toEqual(pod.spec.containers.map((c) => c.name))
      // The API server adds its defaults, and the mount of the service account's token.
      const ours = ({ volumeMounts, ...c }: Container) => c
      for (const i of [0, 1]) {
        const [got, want] = [result.spec.initContainers?.[i], expected.spec.initContainers?.[i]]
        expect(ours(got as Container)).toMatchObject(ours(want as Container))
        expect(got?.volumeMounts).toEqual(expect.arrayContaining(want?.volumeMounts as []))
      }
    })
  })

  it('warns of a bad annotation, and of what it cannot inject', async () => {
    const metadata = {
      name: 'p',
      namespace: 'default',
      annotations: { 'sidecar.edgemesh.io/cpu-request': 'lots' },
    }
    const spec = { containers: [{ name: 'c', image: 'busybox:1.36' }] }
    const bad = await dryRun({ apiVersion: 'v1', kind: 'Pod', metadata, spec })
    expect(bad.injected).toBe(true)
    expect(bad.warnings).toContain('sidecar.edgemesh.io/cpu-request is "lots"')
    const host = await dryRun({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'p', namespace: 'default' },
      spec: { ...spec, hostNetwork: true },
    })
    expect(host.injected).toBe(false)
    expect(host.warnings).toContain('host network')
  })

  it('lets the Job of a CronJob complete', async () => {
    const container = { name: 'c', image: 'busybox:1.36', command: ['true'] }
    const template = { spec: { restartPolicy: 'OnFailure', containers: [container] } }
    const spec = { schedule: '0 3 1 1 *', jobTemplate: { spec: { template } } }
    const metadata = { name: 'nightly', namespace: 'default' }
    await cluster.apply([{ apiVersion: 'batch/v1', kind: 'CronJob', metadata, spec }])
    await cluster.mustKubectl('create', 'job', 'tonight', '--from=cronjob/nightly')
    await ready('--for=condition=Complete', 'job/tonight')
  })

  it('lets a Job complete', async () => {
    const container = { name: 'c', image: 'busybox:1.36', command: ['true'] }
    const template = { spec: { restartPolicy: 'Never', containers: [container] } }
    await cluster.apply([
      {
        apiVersion: 'batch/v1',
        kind: 'Job',
        metadata: { name: 'done', namespace: 'default' },
        spec: { template },
      },
    ])
    await ready('--for=condition=Complete', 'job/done')
    const pods = await cluster.mustKubectl(
      'get',
      'pods',
      '-l',
      'job-name=done',
      '-o',
      'jsonpath={.items[*].spec.initContainers[*].name}',
    )
    expect(pods).toBe('edgemesh-init edgemesh-sidecar')
  })

  it('says on the owner what it did', async () => {
    const events = async () =>
      cluster.mustKubectl(
        'get',
        'events',
        '-o',
        'jsonpath={range .items[*]}{.reason} {.involvedObject.kind} {.involvedObject.name}{"\\n"}{end}',
      )
    await expect.poll(events, patient).toMatch(/Injected ReplicaSet client-/)
    await expect.poll(events, patient).toMatch(/Injected Job done/)
  })
})

describe('tokens', () => {
  const ask = async (token: string) => {
    const bundle = await cluster.mustKubectl(
      ...system,
      'get',
      'configmap',
      'edgemesh-mesh',
      '-o',
      'jsonpath={.data.ca\\.crt}',
    )
    const script = join(import.meta.dirname, 'hello.ts')
    const argv = [process.execPath, script, cluster.nodeIP('cloud'), String(publicPort)]
    const { stdout, stderr } = await cluster.run('cloud', argv, { input: JSON.stringify({ bundle, token }) })
    return stdout === '' ? { type: stderr } : (JSON.parse(stdout) as { type: string; code?: string })
  }
  const tokenFor = (pod: string, audience: string) =>
    cluster.mustKubectl(
      'create',
      'token',
      'default',
      `--audience=${audience}`,
      '--bound-object-kind=Pod',
      `--bound-object-name=${pod}`,
    )

  it('of a pod that exists gets a certificate; without the audience, bound to no pod, or replayed after the pod is gone, none', async () => {
    await cluster.apply([simplePod('victim', 'cloud', { 'sidecar.edgemesh.io/inject': 'false' })])
    await ready('--for=condition=Ready', 'pod/victim')
    const good = await tokenFor('victim', 'edgemesh')
    expect(await ask(good)).toEqual({ type: 'welcome' })
    const refused = { type: 'error', code: 'unauthenticated' }
    expect(await ask(await tokenFor('victim', 'https://kubernetes.default.svc'))).toEqual(refused)
    expect(await ask(await cluster.mustKubectl('create', 'token', 'default', '--audience=edgemesh'))).toEqual(
      refused,
    )
    expect(await ask(`${good.slice(0, -6)}AAAAAA`)).toEqual(refused)
    await cluster.mustKubectl('delete', 'pod', 'victim', '--now')
    expect((await ask(good)).type).toBe('error')
  })
})

describe('presence in the API', () => {
  it('has a Lease for the replica, and the pods that are connected to it', async () => {
    const client = await podOf(cluster, 'client')
    const slices = () =>
      cluster.mustKubectl(
        ...system,
        'get',
        'endpointslices',
        '-l',
        'sidecar.edgemesh.io/presence',
        '-o',
        'jsonpath={.items[*].endpoints[*].targetRef.name}',
      )
    await expect.poll(slices, patient).toContain(client)
    const lease = await cluster.mustKubectl(
      ...system,
      'get',
      'leases',
      '-l',
      'sidecar.edgemesh.io/presence',
      '-o',
      'jsonpath={.items[*].spec.holderIdentity}',
    )
    expect(lease).toMatch(/^edgemesh-server-/)
    await cluster.mustKubectl('delete', 'pod', 'cloud-client', '--now')
    await expect.poll(slices, patient).not.toContain('cloud-client')
  })
})

describe('a service with noproxy=edgemesh', () => {
  it('is left to kube-proxy, and follows its label in pods that run already', async () => {
    await cluster.apply([simpleService('shy'), simplePod('shy', 'cloud', {}, true)])
    await cluster.mustKubectl('label', 'service', 'shy', 'noproxy=edgemesh')
    await ready('--for=condition=Ready', 'pod/shy')
    const ip = await cluster.mustKubectl('get', 'service', 'shy', '-o', 'jsonpath={.spec.clusterIP}')
    const pod = 'asks-shy'
    const known = ['get', 'pod', pod, '-o', 'jsonpath={.spec.initContainers[0].env}']
    await expect
      .poll(async () => {
        await cluster.kubectl('delete', 'pod', pod, '--ignore-not-found')
        await cluster.apply([simplePod(pod, 'cloud')])
        return cluster.mustKubectl(...known)
      }, patient)
      .toContain(ip)
    await ready('--for=condition=Ready', `pod/${pod}`)
    const tunnelled = async () => {
      const before = (await accessLines(cluster, pod)).length
      expect(await say(cluster, pod, 'shy', 'hello')).toBe('hello')
      await delay(500) // the line is written when the connection has ended
      return (await accessLines(cluster, pod)).slice(before).map((l) => l.route)
    }
    expect(await tunnelled()).toEqual([])
    await cluster.mustKubectl('label', 'service', 'shy', 'noproxy-')
    await expect.poll(tunnelled, patient).toEqual(['direct'])
    await cluster.mustKubectl('label', 'service', 'shy', 'noproxy=edgemesh')
    await expect.poll(tunnelled, patient).toEqual([])
  })
})

describe('edgemesh check', () => {
  it('finds nothing wrong', async () => {
    expect(await check()).toEqual({ code: 0, bad: [] })
  })
})

describe('changes under load', () => {
  /** Connects from the edge again and again; resolves with how many did and how many did not echo. */
  const load = (seconds: number, host: string) => {
    const script = `end=$(($(date +%s)+${seconds})); ok=0; bad=0; while [ $(date +%s) -lt $end ]; do r=$(echo $ok | timeout 10 nc -w 8 ${host} 2701); if [ "$r" = "$ok" ]; then ok=$((ok+1)); else bad=$((bad+1)); echo "failed after $ok: $r" >&2; fi; done; echo $ok $bad`
    return async (pod: string) => {
      const { stdout, stderr } = await cluster.kubectl('exec', pod, '-c', 'client', '--', 'sh', '-c', script)
      const [ok = 0, bad = 0] = stdout.trim().split(' ').map(Number)
      return { ok, bad, stderr }
    }
  }

  it('a rolling update fails no request from the other site', async () => {
    const labels = { app: 'rolling' }
    const container = {
      name: 'echo',
      image: 'busybox:1.36',
      command: ['nc', '-ll', '-p', '2701', '-e', 'cat'],
      ports: [{ containerPort: 2701 }],
      readinessProbe: { tcpSocket: { port: 2701 }, periodSeconds: 1 },
      lifecycle: { preStop: { exec: { command: ['sleep', '4'] } } },
    }
    const affinity = { kubernetes: [{ key: 'node-role.kubernetes.io/edge', operator: 'DoesNotExist' }] }
    const spec = {
      replicas: 2,
      strategy: { rollingUpdate: { maxUnavailable: 0, maxSurge: 1 } },
      selector: { matchLabels: labels },
      template: {
        metadata: { labels },
        spec: {
          terminationGracePeriodSeconds: 6,
          containers: [container],
          affinity: {
            nodeAffinity: {
              requiredDuringSchedulingIgnoredDuringExecution: {
                nodeSelectorTerms: [{ matchExpressions: affinity.kubernetes }],
              },
            },
          },
        },
      },
    }
    const metadata = { name: 'rolling', namespace: 'default' }
    await cluster.apply([
      { apiVersion: 'apps/v1', kind: 'Deployment', metadata, spec },
      simpleService('rolling'),
    ])
    await ready('--for=condition=Available', 'deployment/rolling')
    const client = await podOf(cluster, 'client')
    await expect.poll(() => say(cluster, client, 'rolling', 'up'), patient).toBe('up')
    const running = load(35, 'rolling')(client)
    await cluster.mustKubectl('rollout', 'restart', 'deployment/rolling')
    await cluster.mustKubectl('rollout', 'status', 'deployment/rolling', '--timeout=170s')
    const { ok, bad, stderr } = await running
    report(`rolling update of 2 replicas: ${ok} connections, ${bad} failed`)
    expect(stderr).toBe('')
    expect(bad).toBe(0)
    expect(ok).toBeGreaterThan(50)
  })

  it('a pod that is deleted is gone from the balancer at the other site, and fails no request', async () => {
    const client = await podOf(cluster, 'client')
    const pods = async () =>
      (await cluster.mustKubectl('get', 'pods', '-l', 'app=rolling', '-o', 'name')).trim().split('\n')
    await expect.poll(async () => (await pods()).length, patient).toBe(2) // the old ones have ended
    const gone = await podOf(cluster, 'rolling')
    const ip = await cluster.mustKubectl('get', 'pod', gone, '-o', 'jsonpath={.status.podIP}')
    const running = load(8, 'rolling')(client)
    await delay(2_000)
    const deletedMs = Date.now()
    await cluster.mustKubectl('delete', 'pod', gone, '--wait=false')
    expect(await running).toMatchObject({ bad: 0 })
    const uses = (await accessLines(cluster, client)).filter((l) => l.endpoint === `${ip}:2701`)
    const last = Date.parse(uses.at(-1)?.time ?? '')
    report(`last connection to a deleted pod ended ${last - deletedMs} ms after its deletion`)
    expect((await accessLines(cluster, client)).at(-1)?.endpoint).not.toBe(`${ip}:2701`)
  })

  const injectorPods = async () => {
    const selector = ['-l', 'app.kubernetes.io/name=edgemesh-injector', '-o', 'name']
    return (await cluster.mustKubectl(...system, 'get', 'pods', ...selector)).trim().split('\n').length
  }

  it('rotations of the webhook certificate leave no pod uninjected', async () => {
    const restartWith = async (...env: string[]) => {
      await cluster.mustKubectl(...system, 'set', 'env', 'deployment/edgemesh-injector', ...env)
      await cluster.mustKubectl(
        ...system,
        'rollout',
        'status',
        'deployment/edgemesh-injector',
        '--timeout=170s',
      )
      // One that is still ending would make the root anew, with the lifetime that it knows.
      await expect.poll(injectorPods, patient).toBe(2)
      // A root that is taken away is no rotation: the webhook needs a moment to begin anew.
      await cluster.mustKubectl(...system, 'delete', 'secret', 'edgemesh-injector-ca')
      await cluster.mustKubectl(...system, 'rollout', 'restart', 'deployment/edgemesh-injector')
      await cluster.mustKubectl(
        ...system,
        'rollout',
        'status',
        'deployment/edgemesh-injector',
        '--timeout=170s',
      )
    }
    await restartWith('EDGEMESH_CA_LIFETIME=60', 'EDGEMESH_CHECK_EVERY=1')
    const roots = new Set<string>()
    const pod = JSON.stringify({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'rotating', namespace: 'default' },
      spec: { containers: [{ name: 'c', image: 'busybox:1.36' }] },
    })
    let [injected, missed] = [0, 0]
    for (const until = Date.now() + 30_000; Date.now() < until; ) {
      const made = await cluster.kubectlWith(pod, 'create', '--dry-run=server', '-o', 'json', '-f', '-')
      if (made.stdout.includes('edgemesh-sidecar')) injected++
      else missed++
      if (injected % 10 === 0) {
        const secret = await cluster.mustKubectl(
          ...system,
          'get',
          'secret',
          'edgemesh-injector-ca',
          '-o',
          'jsonpath={.data.ca\\.crt}',
        )
        roots.add(secret)
      }
    }
    report(`${roots.size} roots in 30 s: ${injected} pods injected, ${missed} not`)
    expect(roots.size).toBeGreaterThan(1)
    expect(missed).toBe(0)
    await restartWith('EDGEMESH_CA_LIFETIME-', 'EDGEMESH_CHECK_EVERY-')
  }, 240_000)

  it('knows 3,000 services with 10,000 endpoints', async () => {
    await cluster.apply([{ apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'scale' } }])
    const bundle = await cluster.mustKubectl(
      ...system,
      'get',
      'configmap',
      'edgemesh-mesh',
      '-o',
      'jsonpath={.data.ca\\.crt}',
    )
    // A pod without a sidecar of its own, which would take the channel back.
    await cluster.apply([simplePod('observer', 'cloud', { 'sidecar.edgemesh.io/inject': 'false' })])
    await ready('--for=condition=Ready', 'pod/observer')
    const client = await podOf(cluster, 'client')
    const token = await cluster.mustKubectl(
      'create',
      'token',
      'default',
      '--audience=edgemesh',
      '--bound-object-kind=Pod',
      '--bound-object-name=observer',
    )
    const argv = [
      process.execPath,
      join(import.meta.dirname, 'scale.ts'),
      cluster.kubeconfig,
      cluster.nodeIP('cloud'),
      String(publicPort),
      '3000',
      '10000',
    ]
    const { stdout, stderr } = await cluster.run('cloud', argv, {
      input: JSON.stringify({ bundle, token }),
      timeoutMs: 200_000,
    })
    expect(stderr).toBe('')
    const measured = JSON.parse(stdout) as { services: number }
    expect(measured.services).toBeGreaterThanOrEqual(3_000)
    for (const part of ['server', 'injector']) {
      const status = await cluster.onNode('cloud', [
        'sh',
        '-c',
        `grep VmRSS /proc/$(pgrep -f edgemesh/${part}.js | head -1)/status`,
      ])
      report(`${part} with 3,000 services: ${status.stdout.replaceAll(/\s+/g, ' ').trim()}`)
    }
    report(JSON.stringify(measured))
    expect(await say(cluster, client, 'tcp-echo-cloud', 'still')).toBe('still')
  }, 240_000)
})

describe('when something fails', () => {
  const answers = async (line: string) => say(cluster, await podOf(cluster, 'client'), 'tcp-echo-cloud', line)

  it('goes on after the sidecar is killed', async () => {
    const client = await podOf(cluster, 'client')
    const pids = (await cluster.onNode('edge', ['pgrep', '-f', 'edgemesh/sidecar.js run'])).stdout
      .trim()
      .split('\n')
    expect(pids.length).toBeGreaterThan(0)
    await cluster.onNode('edge', ['kill', '-9', ...pids])
    await expect.poll(() => answers('again'), patient).toBe('again')
    const path = 'jsonpath={.status.initContainerStatuses[?(@.name=="edgemesh-sidecar")].restartCount}'
    expect(await cluster.mustKubectl('get', 'pod', client, '-o', path)).toBe('1')
  })

  it('goes on after the kernel killed the sidecar for its memory', async () => {
    const client = await podOf(cluster, 'client')
    const ofSidecar = (field: string) =>
      `jsonpath={.status.initContainerStatuses[?(@.name=="edgemesh-sidecar")].${field}}`
    const id = await cluster.mustKubectl('get', 'pod', client, '-o', ofSidecar('containerID'))
    const folder = `find /sys/fs/cgroup/memory -type d -name ${id.replace('containerd://', '')}`
    // Beside the sidecar in its cgroup; of the two the kernel chooses the pod's process, by oom_score_adj.
    const eat = `echo $$ > $(${folder})/cgroup.procs && head -c 245M /dev/zero | tail -c 245M > /dev/null`
    await cluster.onNode('edge', ['sh', '-c', eat])
    const reason = ofSidecar('lastState.terminated.reason')
    await expect
      .poll(() => cluster.mustKubectl('get', 'pod', client, '-o', reason), patient)
      .toBe('OOMKilled')
    await expect.poll(() => answers('memory'), patient).toBe('memory')
  })

  it('goes on after the container of the app restarts', async () => {
    const server = await podOf(cluster, 'tcp-echo-cloud')
    const ofApp = (field: string) => `jsonpath={.status.containerStatuses[0].${field}}`
    const id = await cluster.mustKubectl('get', 'pod', server, '-o', ofApp('containerID'))
    const kill = ['ctr', '-n', 'k8s.io', 'tasks', 'kill', '-s', 'SIGKILL', id.replace('containerd://', '')]
    expect((await cluster.onNode('cloud', kill)).code).toBe(0)
    await expect
      .poll(() => cluster.mustKubectl('get', 'pod', server, '-o', ofApp('restartCount')), patient)
      .toBe('1')
    await expect.poll(() => answers('restarted'), patient).toBe('restarted')
  })

  it('goes on after the pod lost its sandbox, and init ran again', async () => {
    const client = await podOf(cluster, 'client')
    const uid = await cluster.mustKubectl('get', 'pod', client, '-o', 'jsonpath={.metadata.uid}')
    const ctr = ['ctr', '-n', 'k8s.io']
    const list = [
      ...ctr,
      'containers',
      'ls',
      '-q',
      `labels."io.kubernetes.pod.uid"==${uid},labels."io.cri-containerd.kind"==sandbox`,
    ]
    const sandbox = (await cluster.onNode('edge', list)).stdout.trim()
    expect(sandbox).not.toBe('')
    const killed = await cluster.onNode('edge', [...ctr, 'tasks', 'kill', '-s', 'SIGKILL', sandbox])
    expect(killed.code).toBe(0)
    await expect.poll(() => answers('sandbox'), patient).toBe('sandbox')
    const path = 'jsonpath={.status.initContainerStatuses[?(@.name=="edgemesh-init")].restartCount}'
    await expect.poll(() => cluster.mustKubectl('get', 'pod', client, '-o', path), patient).not.toBe('0')
  })

  it('goes on after the kubelet of the edge restarts', async () => {
    await cluster.restartKubelet('edge')
    await expect.poll(() => answers('kubelet'), patient).toBe('kubelet')
  })

  it('starts labelled pods without the injector, unmeshed, and leaves others alone', async () => {
    await cluster.mustKubectl(...system, 'scale', 'deployment/edgemesh-injector', '--replicas=0')
    await ready(...system, '--for=delete', 'pod', '-l', 'app.kubernetes.io/name=edgemesh-injector')
    await cluster.apply([simplePod('unmeshed', 'cloud')])
    await ready('--for=condition=Ready', 'pod/unmeshed')
    expect(await sidecarsOf('unmeshed')).toEqual([])
    const { code, bad } = await check()
    expect(code).toBe(1)
    expect(bad.join()).toContain('injector: 0 of 0 replicas ready; new pods start unmeshed')
    await cluster.mustKubectl(...system, 'scale', 'deployment/edgemesh-injector', '--replicas=2')
    await ready(...system, '--for=condition=Available', 'deployment/edgemesh-injector')
    await cluster.apply([simplePod('meshed', 'cloud')])
    await ready('--for=condition=Ready', 'pod/meshed')
    expect(await sidecarsOf('meshed')).toEqual(['edgemesh-init', 'edgemesh-sidecar'])
  })

  it('goes on for a minute without the API server, and catches up after it is back', async () => {
    const lists = async () => {
      const pod = (
        await cluster.mustKubectl(
          ...system,
          'get',
          'pods',
          '-l',
          'app.kubernetes.io/name=edgemesh-server',
          '-o',
          'jsonpath={.items[0].status.podIP}',
        )
      ).trim()
      return (at: string) => cluster.run('cloud', ['curl', '-s', `http://${pod}:20005${at}`])
    }
    const fetch = await lists()
    const sayFromInside = await connectionOutside()
    const requests = async () => {
      const { stdout } = await fetch('/metrics')
      const counts = [...stdout.matchAll(/^edgemesh_kubernetes_requests_total\{.*\} (\d+)$/gm)].map((m) =>
        Number(m[1]),
      )
      return counts.reduce((sum, n) => sum + n, 0)
    }
    const before = await requests()
    await cluster.killApiServer()
    try {
      for (const until = Date.now() + 60_000; Date.now() < until; await delay(5_000))
        expect(await sayFromInside('without')).toBe('without')
    } finally {
      await cluster.startApiServer()
    }
    await cluster.apply(await copyOf('tcp-echo-cloud', 'late'))
    const applied = performance.now()
    await expect
      .poll(async () => say(cluster, await podOf(cluster, 'client'), 'late', 'new'), patient)
      .toBe('new')
    report(
      `the edge reaches a new service ${Math.round(performance.now() - applied)} ms after it, API server just back`,
    )
    const metrics = (await fetch('/metrics')).stdout
    const count = Number(/edgemesh_kubernetes_lists (\d+)/.exec(metrics)?.[1])
    // Services, EndpointSlices, Pods, Namespaces, Leases: at the start and after it. A storm would be one per attempt.
    expect(count).toBeLessThanOrEqual(10)
    report(`requests of the server in an outage of 60 s and after it: ${(await requests()) - before}`)
    report(`lists that the server read from the API server, outage included: ${count}`)
  }, 300_000)

  /** The service under another name, with its slice: the cluster's own controllers take a minute to come back. */
  async function copyOf(service: string, name: string): Promise<object[]> {
    const get = async (...what: string[]) =>
      JSON.parse(await cluster.mustKubectl('get', ...what, '-o', 'json'))
    const { spec } = await get('service', service)
    const slices = await get('endpointslices', '-l', `kubernetes.io/service-name=${service}`)
    const { addressType, endpoints, ports, apiVersion, kind } = slices.items[0]
    const labels = { 'kubernetes.io/service-name': name }
    return [
      { apiVersion: 'v1', kind: 'Service', metadata: { name }, spec: { ports: spec.ports } },
      { apiVersion, kind, metadata: { name, labels }, addressType, endpoints, ports },
    ]
  }

  /** kubectl exec needs the API server; a process of the node can enter the pod without. */
  async function connectionOutside(): Promise<(line: string) => Promise<string>> {
    const pids = (await cluster.onNode('edge', ['pgrep', '-f', '^sleep infinity'])).stdout.trim().split('\n')
    const pid = pids.at(-1) ?? '' // the node's own first process sleeps too
    return async (line) => {
      const script = `(echo ${line}; sleep 1) | timeout 8 nc -w 5 tcp-echo-cloud 2701`
      const { stdout } = await cluster.onNode('edge', [
        'nsenter',
        '-t',
        pid,
        '-n',
        '-m',
        '--',
        '/bin/sh',
        '-c',
        script,
      ])
      return stdout.trim()
    }
  }
})
