cd /tmp/w/loads; export PYTHONPATH=$PWD/src OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PY=/work/main/.venv/bin/python
T() { $PY -m pytest -q -n 0 -x --no-header -W ignore "$@" 2>&1 | grep -vE "Loading weights|Writing model" | tail -${TAIL:-25}; }
