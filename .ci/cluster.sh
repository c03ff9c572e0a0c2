# Sourced by run and machines, from the project's root: a cluster of ../shared, old (Argo 3.7, training operator) or new (Argo 4, Trainer).
docker=../shared/docker cluster=../shared/cluster state=/var/lib/physion-cluster
image=physion:$(sed -n 's/^__version__ = "\(.*\)"/\1/p' physion/__init__.py)
export KUBECONFIG=$state/kubeconfig PATH=$state/bin:$PATH

# A Docker daemon; one that somebody else uses stays when daemon_down is called.
daemon_up() {
    local exports
    /usr/bin/docker -H "unix://${STATE:-/var/lib/physion-docker}/docker.sock" info > /dev/null 2>&1 || ours=1
    exports=$($docker/up)
    eval "$exports"
}
daemon_down() { [ -z "${ours:-}" ] || $docker/down; }
# What runs in the cluster; SeaweedFS is in .venv.
images() {
    docker build -f images/Dockerfile -t "$image" .
    until [ -e .venv/ready ]; do sleep 1; done
    docker build -f tests/containers/seaweedfs.Dockerfile -t chrislusf/seaweedfs:4.48 .venv/bin
}
# begin GENERATION [OPTIONS OF up]: a fresh cluster, with the images. Its controllers reserve nothing: beside busy pods they get so
# little of two cores that their probes fail.
begin() {
    $cluster/up --generation "$@"
    # A test takes node2 away: none of them may be there.
    [ ! -d $state/node2 ] || kubectl cordon node2
    kubectl -n argo set env deployment/workflow-controller DEFAULT_REQUEUE_TIME=200ms # docs/kubernetes.md: Overhead
    local deployments space name
    deployments=$(kubectl get deployments -A --no-headers | awk '{print $1, $2}')
    while read -r space name; do kubectl -n "$space" set resources "deployment/$name" --requests=cpu=100m; done <<< "$deployments"
    while read -r space name; do kubectl -n "$space" rollout status "deployment/$name" --timeout=120s; done <<< "$deployments"
    [ ! -d $state/node2 ] || kubectl uncordon node2
    # What $cluster/load does, without a registry that packs and unpacks 5 GB: half the time, the first time.
    for node in $state/node*/; do
        docker save "$image" chrislusf/seaweedfs:4.48 | ctr --address "${node}run/containerd.sock" -n k8s.io images import -
    done
}
# What kept the cluster from doing its work, in a page.
diagnose() {
    {
        uptime
        free -m
        df -h /
        ps -eo pcpu,rss,etime,args --sort=-pcpu | head -n 8 | cut -c1-150
        kubectl describe nodes | sed -n '/^Conditions:/,/^Addresses:/p; /^Allocated/,/^Events:/p' | cut -c1-150
        kubectl get pods -A --no-headers | grep -v Completed
        kubectl get events -A --field-selector type=Warning --sort-by=.lastTimestamp --no-headers | tail -n 15 | cut -c1-250
        tail -n 3 $state/log/{kubelet1,containerd1,scheduler,controller-manager} | cut -c1-250
    } 2>&1 || true
}
